"""The geometric median, by a few steps of the smoothed Weiszfeld algorithm."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mpisign.robust.arguments import check_count, check_number
from mpisign.robust.base import Floats, Needs, Random, Rule
from mpisign.robust.points import inner_products, squared_between


@dataclass(frozen=True)
class GeometricMedian(Rule):
    """z = sum b_i x_i / sum b_i with b_i = 1 / max(nu, |z - x_i|), T times, from the origin.

    Tolerates fewer than n/2 hostile rows; what T steps from the origin reach is near the median,
    not the median itself. Every z is a mean of the rows with weights, and so known by its
    distances: rows are read once to measure and once to mix, whatever T. T = 0: zeros, as ByzFL.

    Source: Pillutla et al. 2022, Robust aggregation for federated learning, algorithm 2; nu, T and
    the start as in ByzFL.
    """

    nu: float = 0.1
    T: int = 3

    def __post_init__(self) -> None:
        check_number(self, "nu", zero=False)
        check_count(self, "T", 0)

    @property
    def needs(self) -> Needs:
        return ("nothing", "norms", "distances")[min(self.T, 2)]  # type: ignore[return-value]

    def weights(self, squared: Floats | None, n: int, rng: Random) -> Floats | None:
        z = np.zeros((1, n + 1))
        z[0, n] = 1.0
        if squared is None:
            return z[:, :n]
        rows = np.eye(n, n + 1)
        # The first step starts at the origin, whose distances were measured.
        apart = squared[n, :n]
        products = inner_products(squared) if self.T > 1 else None
        for step in range(self.T):
            if step and products is not None:
                apart = squared_between(z, rows, products)[0]
            b = 1.0 / np.maximum(np.sqrt(apart), self.nu)
            z = np.append(b / b.sum(), 0.0)[None]
        return z[:, :n]
