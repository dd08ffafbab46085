"""Bulyan: rows chosen by Krum one after the other, then the mean around the median of those."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from mpisign.robust import rows
from mpisign.robust.arguments import check_f
from mpisign.robust.base import Flags, Floats, Needs, Random, Rule
from mpisign.robust.krum import Krum, Neighbours, check_neighbours, scores


@dataclass(frozen=True)
class Bulyan(Rule):
    """Krum n - 2 f times, each time without the rows it chose before; then by coordinate the mean
    of the n - 4 f values nearest to the median of those n - 2 f.

    n of at least 4 f + 3; with f = 0 it is the mean, for any n. Krum's f stays f while rows are
    taken away, its neighbours (at least one) are counted among those left. Of equal scores the
    first row's counts, of values equally near the lower. ``neighbours``, ``squared``: as Krum's.
    Not in ByzFL.

    Source: El Mhamdi et al. 2018, The hidden vulnerability of distributed learning in Byzantium,
    section 4 (theta = n - 2 f, beta = theta - 2 f).
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
        return "distances" if self.f else "nothing"

    def check(self, n: int) -> None:
        super().check(n)
        if self.f and n < 4 * self.f + 3:
            raise ValueError(f"Bulyan: n must be at least 4 f + 3, got f={self.f}, n={n}")

    def weights(self, squared: Floats | None, n: int, rng: Random) -> Floats | None:
        if squared is None or not self.f:
            return np.full((1, n), 1 / n)
        krum = Krum(self.f, self.neighbours, self.squared)
        left = np.arange(n)
        chosen = []
        for _ in range(n - 2 * self.f):
            best = int(np.argmin(scores(squared[np.ix_(left, left)], krum)))
            chosen.append(left[best])
            left = np.delete(left, best)
        weights = np.zeros((len(chosen), n))
        weights[np.arange(len(chosen)), np.sort(chosen)] = 1.0
        return weights

    def reduce(self, Y: Any, *, flags: Flags | None = None) -> Any:
        if not self.f:
            return super().reduce(Y, flags=flags)
        return rows.nearest_to_median(Y, len(Y) - 2 * self.f, flags=flags)
