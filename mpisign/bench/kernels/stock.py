"""Random gradients, momenta and planes, laid out in one block of memory."""

from __future__ import annotations

import functools
import importlib.util
import math
from typing import Any

import numpy as np

from mpisign.backend import arrays

_ALIGNED = 64
_PATTERN = 1 << 20  # coordinates of random data; longer arrays repeat it
_SEED = 20180211


class Stock:
    """Makes arrays of ``xp`` (bfloat16: tensors) in one block, which ``reserve`` frees again."""

    def __init__(self, xp: Any, device: str) -> None:
        self._xp = xp
        self._device = device
        self._block: Any = xp.empty(0, dtype="uint8")
        self._at = self._rows = 0

    @property
    def nbytes(self) -> int:
        """Size of the block."""
        return int(self._block.nbytes)

    def reserve(self, nbytes: int) -> None:
        """Frees all arrays and makes room for ``nbytes``, alignment not counted."""
        if self._block.nbytes < nbytes:
            self._block = None  # the old one goes first
            self._block = self._xp.empty(nbytes + _ALIGNED, dtype="uint8")
        address = self._block.data.ptr if self._xp is not np else self._block.ctypes.data
        self._at = -address % _ALIGNED

    def floats(self, length: int, dtype: str = "float32", zeros: float = 0.0) -> Any:
        """(length,) of standard normal numbers, a share ``zeros`` of them 0."""
        size = arrays.ITEM_SIZE[dtype]
        x = self._take(length * size)
        bits = x.view("float64" if size == 8 else f"uint{8 * size}")
        self._fill(bits, self._pattern(dtype, zeros).view(bits.dtype))
        if dtype != "bfloat16":
            return bits.view(dtype)
        import torch

        return stock_tensor(bits.view("int16")).view(torch.bfloat16)

    def tensor(self, length: int, dtype: str = "float32", zeros: float = 0.0) -> Any:
        """``floats`` as a torch tensor."""
        return stock_tensor(self.floats(length, dtype, zeros))

    def planes(self, length: int, *shape: int) -> Any:
        """Random uint8 (*shape, B), padding bits 0; no two rows alike."""
        nbytes, count = (length + 7) // 8, math.prod(shape)
        rows = self._take(count * nbytes).reshape(count, nbytes)
        pattern = self._plane_pattern()
        for row in rows:
            self._rows = (self._rows + 7919) % (len(pattern) // 2)
            self._fill(row, pattern[self._rows : self._rows + len(pattern) // 2])
        if length % 8:
            rows[:, -1] &= (1 << length % 8) - 1
        return rows.reshape(*shape, nbytes)

    def sparse(self, length: int, share: float) -> Any:
        """Uint8 (2, B), signs and mask: a share of the coordinates is present, anywhere."""
        nbytes = (length + 7) // 8
        both = self._take(2 * nbytes).reshape(2, nbytes)
        for row, pattern in zip(both, self._sparse_pattern(share), strict=True):
            self._fill(row, pattern)
        if length % 8:
            both[:, -1] &= (1 << length % 8) - 1
        return both

    def room(self, nbytes: int) -> Any:
        """Uint8 (nbytes,) of anything."""
        return self._take(nbytes)

    def _take(self, nbytes: int) -> Any:
        first = self._at
        self._at += -(-nbytes // _ALIGNED) * _ALIGNED
        if self._at > len(self._block):
            raise MemoryError(f"{self._at} bytes of {len(self._block)} reserved")
        return self._block[first : first + nbytes]

    @staticmethod
    def _fill(x: Any, pattern: Any) -> None:
        for at in range(0, len(x), len(pattern)):
            part = x[at : at + len(pattern)]
            part[:] = pattern[: len(part)]

    @functools.cache  # noqa: B019 (a stock lives as long as the program)
    def _pattern(self, dtype: str, zeros: float) -> Any:
        rng = np.random.default_rng(_SEED)
        x = rng.standard_normal(_PATTERN)
        x[rng.random(_PATTERN) < zeros] = 0
        if dtype == "bfloat16":
            high = (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
            return self._xp.asarray(high)
        return self._xp.asarray(x.astype(dtype))

    @functools.cache  # noqa: B019
    def _plane_pattern(self) -> Any:
        rng = np.random.default_rng(_SEED + 1)
        return self._xp.asarray(rng.integers(0, 256, 2 * _PATTERN, dtype=np.uint8))

    @functools.cache  # noqa: B019
    def _sparse_pattern(self, share: float) -> Any:
        rng = np.random.default_rng(_SEED + 2)
        mask = np.zeros(_PATTERN, dtype=bool)
        mask[rng.permutation(_PATTERN)[: round(share * _PATTERN)]] = True
        signs = mask & (rng.random(_PATTERN) < 0.5)
        return [self._xp.packbits(bits, bitorder="little") for bits in (signs, mask)]


def stock_tensor(x: Any) -> Any:
    """``x`` as a torch tensor in the same memory."""
    if arrays.is_torch(x):
        return x
    import torch

    return torch.from_numpy(x) if hasattr(x, "ctypes") else torch.from_dlpack(x)


def torch_there() -> bool:
    """Whether torch can be imported."""
    return importlib.util.find_spec("torch") is not None
