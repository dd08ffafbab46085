"""What prepares rows for a rule: nearest-neighbour mixing, bucketing, clipping."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mpisign.robust.arguments import check_count, check_f, check_number
from mpisign.robust.base import Floats, Mixing, Needs, Random


@dataclass(frozen=True)
class NNM(Mixing):
    """Nearest-neighbour mixing: each row becomes the mean of the n - f rows nearest to it, itself
    among them: (n, d) -> (n, d).

    f below n, as in ByzFL; rules after it ask for more. Of rows equally near the first count, where
    ByzFL's choice depends on the framework.

    Source: Allouah et al. 2023, Fixing by mixing, algorithm 2.
    """

    has_f: ClassVar[bool] = True
    f: int = 0

    def __post_init__(self) -> None:
        check_f(self)

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
    """Means of s rows at a time, in random order: (n, d) -> (ceil(n / s), d); the last of the rest.

    A hostile row spoils one bucket: the rule after it sees up to f hostile ones of n / s. The order
    is drawn from the call's ``rng``; with numpy.random.RandomState(seed) it is ByzFL's after
    numpy.random.seed(seed).

    Source: Karimireddy et al. 2022, Byzantine-robust learning on heterogeneous datasets via
    bucketing, algorithm 1.
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
    """Rows longer than c are scaled to length c: (n, d) -> (n, d).

    The rows handed in stay as they are; ByzFL's are overwritten.
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
