"""Krum and Multi-Krum: the rows whose nearest neighbours are nearest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from mpisign.robust.arguments import check_count
from mpisign.robust.base import Floats, Needs, Random, Rule

Neighbours = Literal["n-f-1", "n-f-2"]


class Scored(Rule):
    """A rule that chooses rows by Krum's scores."""

    has_f: ClassVar[bool] = True
    f: int
    neighbours: Neighbours
    squared: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.neighbours not in ("n-f-1", "n-f-2"):
            raise ValueError(
                f"{type(self).__name__}: neighbours must be 'n-f-1' or 'n-f-2', "
                f"got {self.neighbours!r}"
            )

    @property
    def needs(self) -> Needs:
        return "distances"

    @property
    def only_compares(self) -> bool:
        return True

    def check(self, n: int) -> None:
        super().check(n)
        if self.neighbours == "n-f-2" and self.f and 2 * self.f + 2 >= n:
            raise ValueError(
                f"{type(self).__name__}: 2 f + 2 must be below n for neighbours='n-f-2', "
                f"got f={self.f}, n={n}"
            )

    def scores(self, between: Floats) -> Floats:
        """The scores (n,) of n rows, from their squared distances (n, n)."""
        n = len(between)
        if n == 1:
            return np.zeros(1)
        others = between[~np.eye(n, dtype=bool)].reshape(n, n - 1)
        if not self.squared:
            others = np.sqrt(others)
        k = max(n - self.f - (1 if self.neighbours == "n-f-1" else 2), 1)
        nearest: Floats = np.sort(others, axis=1)[:, :k].sum(axis=1)
        return nearest

    def best(self, k: int, squared: Floats | None, n: int) -> Floats:
        """The mean of the k rows with the smallest scores, as weights (1, n)."""
        assert squared is not None
        weights = np.zeros((1, n))
        weights[0, np.argsort(self.scores(squared[:n, :n]), kind="stable")[:k]] = 1.0 / k
        return weights


@dataclass(frozen=True)
class Krum(Scored):
    """The row with the smallest score: sum of squared distances to its nearest neighbours.

    The first of rows with equal scores is chosen. Source: Blanchard et al. 2017, Machine learning
    with adversaries, section 4.

    Args:
        f: Hostile rows, 2 f below n; with "n-f-2" 2 f + 2 below n for f > 0, since f hostile rows
            in one place have f - 1 neighbours at no distance.
        neighbours: How many others a score sums: "n-f-1" as in ByzFL, or "n-f-2" as published.
        squared: False: sum distances, not their squares, as some implementations do.

    Example:
        >>> Krum(f=1)(np.array([[1.0], [1.5], [2.5], [900.0]])).tolist()
        [1.5]
    """

    f: int = 0
    neighbours: Neighbours = "n-f-1"
    squared: bool = True

    def weights(self, squared: Floats | None, n: int, rng: Random) -> Floats | None:
        return self.best(1, squared, n)


@dataclass(frozen=True)
class MultiKrum(Scored):
    """The mean of the m rows with the smallest scores of ``Krum``; the first of equal scores.

    Source: Blanchard et al. 2017, section 5; m = n - f - 2: Damaskinos et al. 2019, AggregaThor.

    Args:
        f: As ``Krum``.
        m: Number of rows, at most n - f are taken. None: n - f as in ByzFL. Published: up to
            n - f - 2; m = 1 is Krum.
        neighbours: As ``Krum``.
        squared: As ``Krum``.

    Example:
        >>> MultiKrum(f=1)(np.array([[1.0], [1.5], [3.5], [900.0]])).tolist()
        [2.0]
    """

    f: int = 0
    m: int | None = None
    neighbours: Neighbours = "n-f-1"
    squared: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.m is not None:
            check_count(self, "m", 1)

    def weights(self, squared: Floats | None, n: int, rng: Random) -> Floats | None:
        most = n - self.f
        return self.best(most if self.m is None else min(self.m, most), squared, n)
