"""The gradient of one size, cut into tensors."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

#: The vote of so many coordinates from the first on is checked against NumPy.
CHECKED = 1 << 20
_RESNET50_BLOCKS = ((64, 3), (128, 4), (256, 6), (512, 3))  # width, blocks


@functools.cache
def resnet50() -> tuple[int, ...]:
    """Coordinates of each of ResNet-50's 161 parameters, 25,557,032 in all."""
    found = [64 * 3 * 7 * 7, 64, 64]
    before = 64
    for width, blocks in _RESNET50_BLOCKS:
        for block in range(blocks):
            found += [before * width, width, width, width * width * 9, width, width]
            found += [width * 4 * width, width * 4, width * 4]
            if block == 0:
                found += [before * width * 4, width * 4, width * 4]
            before = width * 4
    return (*found, before * 1000, 1000)


def cut(length: int, tensors: int | str) -> tuple[int, ...]:
    """Lengths of the tensors that ``length`` coordinates are cut into.

    An int: so many, as equal as can be. "resnet50": in the proportions of its parameters.
    """
    if tensors == "resnet50":
        parts = np.array(resnet50(), dtype=np.float64)
        ends = np.rint(np.cumsum(parts) / parts.sum() * length).astype(np.int64)
    else:
        ends = np.arange(1, int(tensors) + 1, dtype=np.int64) * length // int(tensors)
    lengths = np.diff(ends, prepend=0)
    return tuple(int(n) for n in lengths if n)


class Gradient:
    """``values`` (d,) float32, normal, no zero among them, of this rank's own.

    ``out`` (d,) float32 is where every method writes its result, one after another.
    """

    def __init__(self, length: int, lengths: Sequence[int], rank: int, size: int) -> None:
        self.length, self.rank, self.size = length, rank, size
        self.lengths = tuple(lengths)
        self.values = values_of(length, rank)
        self.out = np.empty_like(self.values)
        self._ends = tuple(itertools.accumulate(lengths))

    def cut(self, array: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        """The tensors of an array (d,), as views."""
        starts = (0, *self._ends[:-1])
        return [array[a:b] for a, b in zip(starts, self._ends, strict=True)]

    @functools.cached_property
    def all_ranks(self) -> Floats:
        """The first ``CHECKED`` coordinates of every rank's values: (size, n)."""
        n = min(self.length, CHECKED)
        return np.stack([values_of(n, rank) for rank in range(self.size)])

    def forget(self) -> None:
        """Frees what only checks need."""
        self.__dict__.pop("all_ranks", None)


def values_of(length: int, rank: int) -> Floats:
    """The gradient of ``rank``: (length,), its first coordinates the same at any length."""
    values = np.random.default_rng(1000 + rank).standard_normal(length, dtype=np.float32)
    values[values == 0] = 1.0
    return values


def sign_sums(rows: Floats) -> npt.NDArray[np.int64]:
    """Sum of signs over ``rows`` (p, n): (n,)."""
    return np.where(rows < 0, -1, 1).sum(axis=0, dtype=np.int64)
