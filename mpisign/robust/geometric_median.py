"""The geometric median, by a few steps of the smoothed Weiszfeld algorithm."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mpisign.robust.arguments import check_count, check_number
from mpisign.robust.base import Floats, Needs, Random, Rule
from mpisign.robust.points import iterated, needs_of


@dataclass(frozen=True)
class GeometricMedian(Rule):
    """z = sum b_i x_i / sum b_i with b_i = 1 / max(nu, |z - x_i|), T times, from the origin.

    Tolerates fewer than n/2 hostile rows. After T steps z is near the median, not the median
    itself. Each z is a weighted mean of the rows, so its distances follow from theirs: rows are
    read once to measure and once to mix. Source: Pillutla et al. 2022, Robust aggregation for
    federated learning, algorithm 2; nu, T and the start as in ByzFL.

    Args:
        nu: Smallest distance, in units of the rows.
        T: Number of steps. 0: zeros, as ByzFL.

    Example:
        >>> GeometricMedian(T=20)(np.array([[1.0], [1.1], [900.0]])).round(1).tolist()
        [1.1]
    """

    nu: float = 0.1
    T: int = 3

    def __post_init__(self) -> None:
        check_number(self, "nu", zero=False)
        check_count(self, "T", 0)

    @property
    def needs(self) -> Needs:
        return needs_of(self.T)

    def weights(self, squared: Floats | None, n: int, rng: Random) -> Floats | None:
        def step(z: Floats, apart: Floats) -> Floats:
            b = 1.0 / np.maximum(np.sqrt(apart), self.nu)
            return np.append(b / b.sum(), 0.0)[None]

        return iterated(self.T, step, squared, n)
