"""Rules of one coordinate at a time: mean, median, trimmed mean, mean around the median."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from mpisign.robust import rows
from mpisign.robust.base import Flags, Floats, Random, Rule


@dataclass(frozen=True)
class Mean(Rule):
    """The mean of the finite rows; tolerates no hostile row that is finite.

    Example:
        >>> Mean()(np.array([[1.0], [3.0], [np.nan]])).tolist()
        [2.0]
    """

    def weights(self, squared: Floats | None, n: int, rng: Random) -> Floats | None:
        return np.full((1, n), 1 / n)


#: ByzFL's name.
Average = Mean


@dataclass(frozen=True)
class Median(Rule):
    """The median of each coordinate; the mean of the middle two where n is even.

    Tolerates fewer than n/2 hostile rows: each coordinate lies in the range of the honest rows'.
    Even n as ByzFL in both frameworks (numpy.median, torch.quantile; torch.median would take the
    lower of the two). Source: Yin et al. 2018, Byzantine-robust distributed learning, definition 1.

    Example:
        >>> Median()(np.array([[1.0], [2.0], [4.0], [900.0]])).tolist()
        [3.0]
    """

    def reduce(self, Y: Any, *, flags: Flags | None = None) -> Any:
        n = len(Y)
        return rows.sorted_mean(Y, (n - 1) // 2, n // 2 + 1, flags=flags)


@dataclass(frozen=True)
class _Trimmed(Rule):
    """A mean that leaves values out if f > 0."""

    has_f: ClassVar[bool] = True
    f: int = 0

    def weights(self, squared: Floats | None, n: int, rng: Random) -> Floats | None:
        return None if self.f else np.full((1, n), 1 / n)

    def reduce(self, Y: Any, *, flags: Flags | None = None) -> Any:
        return self._trimmed(Y, flags) if self.f else super().reduce(Y, flags=flags)

    def _trimmed(self, Y: Any, flags: Flags | None) -> Any:
        raise NotImplementedError


@dataclass(frozen=True)
class TrMean(_Trimmed):
    """The mean of each coordinate without its f largest and f smallest values.

    Source: Yin et al. 2018, definition 2.

    Args:
        f: Hostile rows, below n/2.

    Example:
        >>> TrMean(f=1)(np.array([[1.0], [2.0], [4.0], [900.0]])).tolist()
        [3.0]
    """

    def _trimmed(self, Y: Any, flags: Flags | None) -> Any:
        return rows.sorted_mean(Y, self.f, len(Y) - self.f, flags=flags)


@dataclass(frozen=True)
class Meamed(_Trimmed):
    """The mean of the n - f values of each coordinate that are nearest to its median.

    The lower of two values equally near counts as nearer (in ByzFL it depends on the framework).
    Source: Xie et al. 2018, Generalized Byzantine-tolerant SGD, definition 8.

    Args:
        f: Hostile rows, below n/2.

    Example:
        >>> Meamed(f=1)(np.array([[1.0], [2.0], [6.0], [900.0]])).tolist()
        [3.0]
    """

    def _trimmed(self, Y: Any, flags: Flags | None) -> Any:
        return rows.nearest_to_median(Y, len(Y) - self.f, flags=flags)
