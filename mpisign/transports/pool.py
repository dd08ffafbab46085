"""A pool of memory that grows and never shrinks, for staged bytes and messages."""

from __future__ import annotations

import bisect
import threading
from collections.abc import Callable, Sequence

import numpy as np

from mpisign.transports.base import Bytes

#: Slices begin at multiples of that, for the copy engines of a GPU.
_ALIGN = 256
#: Smallest block: pinning memory takes milliseconds, whatever its size.
_LEAST = 1 << 20
_NOTHING: Bytes = np.empty(0, dtype=np.uint8)


class Lease:
    """Slices of a pool's memory, until ``give_back``.

    A lease that is dropped without it stays taken: a device may still write there.
    """

    __slots__ = ("_pool", "_range", "slices")

    def __init__(self, slices: list[Bytes], pool: Pool | None, range: tuple[int, int, int]) -> None:
        self.slices = slices
        self._pool = pool
        self._range = range

    def give_back(self) -> None:
        """Returns the memory to the pool; a second call does nothing."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool._free(self._range)


class Pool:
    """Slices of blocks that ``allocate(nbytes)`` returns, as contiguous uint8 arrays.

    No two leases overlap. A block goes when neither the pool nor a slice of it is left. Each new
    block is as large as all before it together, or larger: needs that grow slowly take few of them.
    Safe for threads.
    """

    def __init__(self, allocate: Callable[[int], Bytes]) -> None:
        self._allocate = allocate
        self._blocks: list[Bytes] = []
        self._gaps: list[list[tuple[int, int]]] = []  # of each block, in order: (first, past last)
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Of all blocks."""
        return sum(block.nbytes for block in self._blocks)

    def take(self, lengths: Sequence[int]) -> Lease:
        """Slices of ``lengths`` bytes, 0 included, side by side; what ``allocate`` raises."""
        sizes = [-(-n // _ALIGN) * _ALIGN for n in lengths]
        size = sum(sizes)
        if not size:
            return Lease([_NOTHING] * len(sizes), None, (0, 0, 0))
        with self._lock:
            block, first = self._find(size) or self._grow(size)
        memory, at, slices = self._blocks[block], first, []
        for length, step in zip(lengths, sizes, strict=True):
            slices.append(memory[at : at + length])
            at += step
        return Lease(slices, self, (block, first, at))

    def _find(self, size: int) -> tuple[int, int] | None:
        """Takes the first gap that is large enough: its block, and where it begins."""
        for block, gaps in enumerate(self._gaps):
            for i, (first, past) in enumerate(gaps):
                if past - first >= size:
                    gaps[i : i + 1] = [(first + size, past)] if past - first > size else []
                    return block, first
        return None

    def _grow(self, size: int) -> tuple[int, int]:
        memory = self._allocate(max(size, self.nbytes, _LEAST))
        self._blocks.append(memory)
        self._gaps.append([(size, memory.nbytes)] if memory.nbytes > size else [])
        return len(self._blocks) - 1, 0

    def _free(self, range: tuple[int, int, int]) -> None:
        block, first, past = range
        with self._lock:
            gaps = self._gaps[block]
            i = bisect.bisect(gaps, (first, past))
            if i < len(gaps) and gaps[i][0] == past:
                past = gaps.pop(i)[1]
            if i and gaps[i - 1][1] == first:
                i -= 1
                first = gaps.pop(i)[0]
            gaps.insert(i, (first, past))
