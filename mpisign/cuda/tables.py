"""Tables of pieces in device memory: written once, kept for the next step's same gradients."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np

from mpisign.cuda import launch

_KEPT = 64
_THREADS = 256
#: Rows that one launch can bring along (ROWS_BY_VALUE in kernels/fused.cu).
_ROWS_BY_VALUE = 62


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
    """The tables that one stream has used last."""

    def __init__(self, launcher: launch.Launcher) -> None:
        self._launcher = launcher
        self._kept: OrderedDict[tuple[bytes, int], tuple[Any, int, int, int]] = OrderedDict()

    def get(self, pieces: bytes, per_block: int) -> tuple[int, int, int]:
        """(address, rows, CUDA blocks of ``per_block`` coordinates) of the pieces' table."""
        key = (pieces, per_block)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key][1:]
        table, blocks = table_of(pieces, per_block)
        memory, address = self._launcher.scratch(max(1, table.nbytes))
        for first in range(0, len(table), _ROWS_BY_VALUE):
            rows = np.zeros((), dtype=[("row", np.int64, (_ROWS_BY_VALUE, 8))])
            part = table[first : first + _ROWS_BY_VALUE]
            rows["row"][: len(part)] = part
            args = (address + part.itemsize * 8 * first, part.size, rows)
            self._launcher.launch("fused", "store_table", 1, _THREADS, 0, args)
        self._kept[key] = (memory, address, len(table), blocks)
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return address, len(table), blocks
