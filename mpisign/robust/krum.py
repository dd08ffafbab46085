"""Krum and Multi-Krum: the rows whose nearest neighbours are nearest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from mpisign.robust.arguments import check_count, check_f
from mpisign.robust.base import Floats, Needs, Random, Rule

Neighbours = Literal["n-f-1", "n-f-2"]


@dataclass(frozen=True)
class Krum(Rule):
    """The row with the smallest score: sum of squared distances to its nearest neighbours.

    ``neighbours``: how many others a score sums, "n-f-1" as in ByzFL (default) or "n-f-2" as
    published. 2 f must be below n, published 2 f + 2 (for f > 0): f hostile rows in one place have
    f - 1 neighbours at no distance, and a score must reach beyond them. ``squared=False``:
    distances are summed, not their squares, as in some implementations. Of equal scores the first
    row's counts.

    Source: Blanchard et al. 2017, Machine learning with adversaries, section 4.
    """

    has_f: ClassVar[bool] = True
    f: int = 0
    neighbours: Neighbours = "n-f-1"
    squared: bool = True

    def __post_init__(self) -> None:
        check_f(self)
        check_neighbours(self, self.neighbours)

    @property
    def needs(self) -> Needs:
        return "distances"

    def check(self, n: int) -> None:
        super().check(n)
        check_published(self, self.f, self.neighbours, n)

    def weights(self, squared: Floats | None, n: int, rng: Random) -> Floats | None:
        assert squared is not None
        order = np.argsort(scores(squared[:n, :n], self), kind="stable")
        return selection(order[:1], n)


@dataclass(frozen=True)
class MultiKrum(Rule):
    """The mean of the rows with the smallest scores of Krum.

    ``m``: how many of them; None: n - f as in ByzFL. Published are any m up to n - f - 2, and m = 1
    is Krum. More than n - f are never taken. Of equal scores the first rows' count, where ByzFL's
    choice depends on the framework. f, ``neighbours`` and ``squared``: as Krum's.

    Source: Blanchard et al. 2017, section 5; m = n - f - 2: Damaskinos et al. 2019, AggregaThor.
    """

    has_f: ClassVar[bool] = True
    f: int = 0
    m: int | None = None
    neighbours: Neighbours = "n-f-1"
    squared: bool = True

    def __post_init__(self) -> None:
        check_f(self)
        check_neighbours(self, self.neighbours)
        if self.m is not None:
            check_count(self, "m", 1)

    @property
    def needs(self) -> Needs:
        return "distances"

    def check(self, n: int) -> None:
        super().check(n)
        check_published(self, self.f, self.neighbours, n)

    def weights(self, squared: Floats | None, n: int, rng: Random) -> Floats | None:
        assert squared is not None
        best = n - self.f if self.m is None else min(self.m, n - self.f)
        order = np.argsort(scores(squared[:n, :n], self), kind="stable")
        return selection(order[:best], n)


def check_neighbours(rule: object, neighbours: object) -> None:
    """ValueError unless ``neighbours`` is one of the two."""
    if neighbours not in ("n-f-1", "n-f-2"):
        raise ValueError(
            f"{type(rule).__name__}: neighbours must be 'n-f-1' or 'n-f-2', got {neighbours!r}"
        )


def check_published(rule: object, f: int, neighbours: Neighbours, n: int) -> None:
    """ValueError unless n rows are enough for the neighbours that are counted."""
    if neighbours == "n-f-2" and f and 2 * f + 2 >= n:
        raise ValueError(
            f"{type(rule).__name__}: 2 f + 2 must be below n for neighbours='n-f-2', "
            f"got f={f}, n={n}"
        )


def scores(between: Floats, rule: Krum | MultiKrum) -> Floats:
    """Krum's scores of n rows, from their squared distances (n, n)."""
    n = len(between)
    if n == 1:
        return np.zeros(1)
    others = between[~np.eye(n, dtype=bool)].reshape(n, n - 1)
    if not rule.squared:
        others = np.sqrt(others)
    k = max(n - rule.f - (1 if rule.neighbours == "n-f-1" else 2), 1)
    nearest: Floats = np.sort(others, axis=1)[:, :k].sum(axis=1)
    return nearest


def selection(chosen: np.ndarray[Any, Any], n: int) -> Floats:
    """The mean of the chosen rows, as weights (1, n)."""
    weights = np.zeros((1, n))
    weights[0, chosen] = 1.0 / len(chosen)
    return weights
