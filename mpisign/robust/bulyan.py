"""Bulyan: rows chosen by Krum one after the other, then the mean around their median."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mpisign.robust import rows
from mpisign.robust.base import Flags, Floats, Needs, Random, Rule
from mpisign.robust.krum import Neighbours, Scored


@dataclass(frozen=True)
class Bulyan(Scored):
    """Krum n - 2 f times, each time without the rows chosen before; then per coordinate the mean of
    the n - 4 f values nearest to the median of those n - 2 f.

    Krum's f stays f while rows are taken away; its neighbours (at least one) are counted among the
    rest. The first of rows with equal scores is chosen, the lower of values equally near the
    median. Not in ByzFL. Source: El Mhamdi et al. 2018, The hidden vulnerability of distributed
    learning in Byzantium, section 4 (theta = n - 2 f, beta = theta - 2 f).

    Args:
        f: Hostile rows; n must be at least 4 f + 3. With f = 0 it is the mean, for any n.
        neighbours: As ``Krum``.
        squared: As ``Krum``.

    Example:
        >>> X = np.array([[1.0], [2.0], [3.0], [4.0], [5.0], [6.0], [900.0]])
        >>> Bulyan(f=1)(X).tolist()
        [3.0]
    """

    f: int = 0
    neighbours: Neighbours = "n-f-1"
    squared: bool = True

    @property
    def needs(self) -> Needs:
        return "distances" if self.f else "nothing"

    def check(self, n: int) -> None:
        Rule.check(self, n)
        if self.f and n < 4 * self.f + 3:
            raise ValueError(f"Bulyan: n must be at least 4 f + 3, got f={self.f}, n={n}")

    def weights(self, squared: Floats | None, n: int, rng: Random) -> Floats | None:
        if squared is None or not self.f:
            return np.full((1, n), 1 / n)
        left = np.arange(n)
        for _ in range(n - 2 * self.f):
            left = np.delete(left, int(np.argmin(self.scores(squared[np.ix_(left, left)]))))
        return np.delete(np.eye(n), left, axis=0)

    def reduce(self, Y: Any, *, flags: Flags | None = None) -> Any:
        if not self.f:
            return super().reduce(Y, flags=flags)
        return rows.nearest_to_median(Y, len(Y) - 2 * self.f, flags=flags)
