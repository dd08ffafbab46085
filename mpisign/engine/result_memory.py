"""Memory for results that callers did not bring: what they have dropped is taken again.

Fresh memory is dear: the kernel hands out and clears its pages one by one, which for large results
takes longer than the vote.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

_LEAST = 1 << 20  # bytes, from which on allocators return memory to the kernel
_KEPT = 2  # results of one size: the last is still held when the next is made
_MOST_NBYTES = 512 << 20


def _references() -> int:
    owner = np.empty(0)
    owners = [owner]
    del owner
    return sys.getrefcount(owners[0])


#: References to an array that a list alone holds, as ``sys.getrefcount`` counts them.
_UNUSED = _references()


class ResultMemory:
    """NumPy arrays from ``empty``; those that nobody refers to any more are handed out again.

    Keeps up to two of the latest size, 512 MiB at most.
    """

    def __init__(self) -> None:
        self._owners: list[Any] = []
        self._nbytes = 0  # of each

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """A C-contiguous array whose values are undefined."""
        dtype = np.dtype(dtype)
        nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if nbytes < _LEAST or _KEPT * nbytes > _MOST_NBYTES:
            return np.empty(shape, dtype)
        if nbytes != self._nbytes:
            self._owners, self._nbytes = [], nbytes
        owners = self._owners
        for i in range(len(owners)):
            # Views of any kind refer to the array that owns the memory.
            if sys.getrefcount(owners[i]) == _UNUSED:
                return owners[i].view(dtype).reshape(shape)
        owner = np.empty(nbytes, np.uint8)
        if len(owners) < _KEPT:
            owners.append(owner)
        return owner.view(dtype).reshape(shape)
