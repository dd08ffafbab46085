"""Small host arrays in device memory: tables of pieces, weights. Sent once, then kept."""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from typing import Any

import numpy as np

from mpisign.backend.cuda import launch

#: Tables, and bytes of tables, that a stream keeps.
_KEPT = 64
_KEPT_BYTES = 16 << 20
_THREADS = 256
#: int64 in the arguments of one launch (struct Rows of kernels/fused.cu).
_AT_ONCE = 8 * 62
_ROWS = np.dtype([("row", np.int64, (_AT_ONCE,))])


@functools.lru_cache(maxsize=64)
def table_of(pieces: bytes, per_block: int) -> tuple[np.ndarray[Any, Any], int]:
    """(rows of struct Piece in kernels/gpu_rules.h, CUDA blocks); empty pieces are left out."""
    given = np.frombuffer(pieces, dtype=np.int64).reshape(-1, 6)
    given = given[given[:, 1] > 0]
    blocks = -(-given[:, 1] // per_block)
    table = np.zeros((len(given), 8), dtype=np.int64)
    table[:, :6] = given
    table[:, 6] = np.cumsum(blocks) - blocks
    return table, int(blocks.sum())


class Tables:
    """The tables that one stream has used last. Threads may share it."""

    def __init__(self, launcher: launch.Launcher) -> None:
        self._launcher = launcher
        self._lock = threading.Lock()
        self._sent: OrderedDict[bytes, tuple[Any, int]] = OrderedDict()
        self._nbytes = 0
        self._thread = threading.local()

    def pieces(self, pieces: bytes, per_block: int) -> tuple[int, int, int]:
        """(address, rows, CUDA blocks of ``per_block`` coordinates) of the pieces' table."""
        table, blocks = table_of(pieces, per_block)
        return self.send(table), len(table), blocks

    def send(self, array: np.ndarray[Any, Any]) -> int:
        """The address of a copy on the device, made by launches whose arguments hold the content.

        It is valid for work that this thread queues before its next call.
        """
        content = array.tobytes()
        with self._lock:
            if content not in self._sent:
                self._sent[content] = self._copy(content)
                self._nbytes += len(content)
            self._sent.move_to_end(content)
            memory, address = self._sent[content]
            while len(self._sent) > 1 and (len(self._sent) > _KEPT or self._nbytes > _KEPT_BYTES):
                self._nbytes -= len(self._sent.popitem(last=False)[0])
        self._thread.memory = memory
        return address

    def _copy(self, content: bytes) -> tuple[Any, int]:
        words = np.frombuffer(content + bytes(-len(content) % 8), dtype=np.int64)
        memory, address = self._launcher.scratch(max(8, words.nbytes))
        for first in range(0, words.size, _AT_ONCE):
            part = words[first : first + _AT_ONCE]
            rows = np.zeros((), dtype=_ROWS)
            rows["row"][: part.size] = part
            args = (address + 8 * first, part.size, rows)
            self._launcher.launch("fused", "store_table", 1, _THREADS, 0, args)
        return memory, address
