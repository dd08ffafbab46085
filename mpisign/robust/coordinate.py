"""Rules that look at one coordinate at a time: mean, median, trimmed mean, mean around median."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from mpisign.robust import rows
from mpisign.robust.arguments import check_f
from mpisign.robust.base import Flags, Floats, Random, Rule


@dataclass(frozen=True)
class Mean(Rule):
    """The mean of the rows: tolerates no hostile row, but for those that are not finite."""

    def weights(self, squared: Floats | None, n: int, rng: Random) -> Floats | None:
        return np.full((1, n), 1 / n)


#: ByzFL's name.
Average = Mean


@dataclass(frozen=True)
class Median(Rule):
    """The median of each coordinate; the mean of the middle two where n is even.

    Tolerates fewer than n/2 hostile rows: each coordinate lies in the range of the honest rows'.
    Source: Yin et al. 2018, Byzantine-robust distributed learning, definition 1. Even n as ByzFL in
    both frameworks (numpy.median, torch.quantile; torch.median would take the lower of the two).
    """

    def reduce(self, Y: Any, *, flags: Flags | None = None) -> Any:
        n = len(Y)
        return rows.sorted_mean(Y, (n - 1) // 2, n // 2 + 1, flags=flags)


@dataclass(frozen=True)
class TrMean(Rule):
    """The mean of what is left of each coordinate without its f largest and f smallest values.

    f below n/2. Source: Yin et al. 2018, definition 2.
    """

    has_f: ClassVar[bool] = True
    f: int = 0

    def __post_init__(self) -> None:
        check_f(self)

    def weights(self, squared: Floats | None, n: int, rng: Random) -> Floats | None:
        return None if self.f else np.full((1, n), 1 / n)

    def reduce(self, Y: Any, *, flags: Flags | None = None) -> Any:
        if not self.f:
            return super().reduce(Y, flags=flags)
        return rows.sorted_mean(Y, self.f, len(Y) - self.f, flags=flags)


@dataclass(frozen=True)
class Meamed(Rule):
    """The mean of the n - f values of each coordinate that are nearest to its median.

    f below n/2. Of two values equally near the lower counts as nearer, where ByzFL's choice depends
    on the framework. Source: Xie et al. 2018, Generalized Byzantine-tolerant SGD, definition 8.
    """

    has_f: ClassVar[bool] = True
    f: int = 0

    def __post_init__(self) -> None:
        check_f(self)

    def weights(self, squared: Floats | None, n: int, rng: Random) -> Floats | None:
        return None if self.f else np.full((1, n), 1 / n)

    def reduce(self, Y: Any, *, flags: Flags | None = None) -> Any:
        if not self.f:
            return super().reduce(Y, flags=flags)
        return rows.nearest_to_median(Y, len(Y) - self.f, flags=flags)
