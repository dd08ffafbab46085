"""Transformations of rows before a rule: nearest-neighbour mixing, bucketing, clipping."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mpisign.robust.arguments import check_count, check_number
from mpisign.robust.base import Floats, Mixing, Needs, Random


@dataclass(frozen=True)
class NNM(Mixing):
    """Nearest-neighbour mixing: each row becomes the mean of the n - f rows nearest to it, itself
    included: (n, d) -> (n, d). The first of rows equally near count.

    Source: Allouah et al. 2023, Fixing by mixing, algorithm 2.

    Args:
        f: Hostile rows, below n as in ByzFL; the rule that follows may need more rows.

    Example:
        >>> NNM(f=1)(np.array([[1.0], [3.0], [99.0]])).tolist()
        [[2.0], [2.0], [51.0]]
    """

    has_f: ClassVar[bool] = True
    f: int = 0

    @property
    def only_compares(self) -> bool:
        return True

    @property
    def needs(self) -> Needs:
        return "distances"

    def check(self, n: int) -> None:
        if self.f >= n:
            raise ValueError(f"NNM: f must be below n, got f={self.f}, n={n}")

    def weights(self, squared: Floats | None, n: int, rng: Random) -> Floats | None:
        assert squared is not None
        k = n - self.f
        nearest = np.argsort(squared[:n, :n], axis=1, kind="stable")[:, :k]
        weights = np.zeros((n, n))
        np.put_along_axis(weights, nearest, 1.0 / k, axis=1)
        return weights


@dataclass(frozen=True)
class Bucketing(Mixing):
    """Means of s rows in random order: (n, d) -> (ceil(n / s), d), the last of the rest.

    Each hostile row affects one bucket: the rule that follows sees up to f hostile of n / s rows.
    The call's ``rng`` draws the order; with numpy.random.RandomState(seed) it is ByzFL's after
    numpy.random.seed(seed). Source: Karimireddy et al. 2022, Byzantine-robust learning on
    heterogeneous datasets via bucketing, algorithm 1.

    Args:
        s: Rows per bucket.

    Example:
        >>> Bucketing(s=2)(np.array([[1.0], [3.0]])).tolist()
        [[2.0]]
    """

    s: int = 1

    def __post_init__(self) -> None:
        check_count(self, "s", 1)

    def count(self, n: int) -> int:
        return -(-n // self.s)

    def weights(self, squared: Floats | None, n: int, rng: Random) -> Floats | None:
        order = rng.permutation(n)
        weights = np.zeros((self.count(n), n))
        for bucket in range(len(weights)):
            rows = order[bucket * self.s : (bucket + 1) * self.s]
            weights[bucket, rows] = 1.0 / len(rows)
        return weights


@dataclass(frozen=True)
class Clipping(Mixing):
    """Scales rows longer than c to length c: (n, d) -> (n, d). X stays as it is (not in ByzFL).

    Args:
        c: Largest Euclidean norm.

    Example:
        >>> Clipping(c=1.0)(np.array([[3.0, 0.0], [0.0, 0.5]])).tolist()
        [[1.0, 0.0], [0.0, 0.5]]
    """

    moves_along: ClassVar[bool] = False
    c: float = 2.0

    def __post_init__(self) -> None:
        check_number(self, "c", zero=True)

    @property
    def needs(self) -> Needs:
        return "norms"

    def weights(self, squared: Floats | None, n: int, rng: Random) -> Floats | None:
        assert squared is not None
        norms = np.sqrt(squared[:n, n])
        return np.diag(np.where(norms > self.c, self.c / np.maximum(norms, 1e-300), 1.0))
