"""Small host arrays in device memory: tables of pieces, weights. Sent once, then kept."""

from __future__ import annotations

import functools
from collections import OrderedDict
from typing import Any

import numpy as np

from mpisign.cuda import launch

_KEPT = 64
_THREADS = 256
#: int64 that one launch can bring along (struct Rows of kernels/fused.cu).
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
    """What one stream has used last."""

    def __init__(self, launcher: launch.Launcher) -> None:
        self._launcher = launcher
        self._sent: OrderedDict[bytes, tuple[Any, int]] = OrderedDict()

    def pieces(self, pieces: bytes, per_block: int) -> tuple[int, int, int]:
        """(address, rows, CUDA blocks of ``per_block`` coordinates) of the pieces' table."""
        table, blocks = table_of(pieces, per_block)
        return self.send(table), len(table), blocks

    def send(self, array: np.ndarray[Any, Any]) -> int:
        """The address of a copy on the device, made by launches that bring the content along."""
        content = array.tobytes()
        if content in self._sent:
            self._sent.move_to_end(content)
            return self._sent[content][1]
        words = np.frombuffer(content + bytes(-len(content) % 8), dtype=np.int64)
        memory, address = self._launcher.scratch(max(8, words.nbytes))
        for first in range(0, words.size, _AT_ONCE):
            part = words[first : first + _AT_ONCE]
            rows = np.zeros((), dtype=_ROWS)
            rows["row"][: part.size] = part
            args = (address + 8 * first, part.size, rows)
            self._launcher.launch("fused", "store_table", 1, _THREADS, 0, args)
        self._sent[content] = (memory, address)
        while len(self._sent) > _KEPT:
            self._sent.popitem(last=False)
        return address
