"""What is measured: times, and what follows from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: median and quartiles of ``runs`` samples."""

    median: float
    low: float
    high: float
    runs: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Timing:
        """Of seconds measured."""
        low, median, high = (float(q) for q in np.percentile(samples, (25, 50, 75)))
        return cls(median, low, high, len(samples))

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, as a share of the median."""
        return (self.high - self.low) / 2 / self.median


@dataclass(frozen=True)
class Plain:
    """A plain way, and how many times longer it takes."""

    name: str
    time: Timing
    times_slower: float


@dataclass(frozen=True)
class Row:
    """One kernel at one size with one number of threads. ``error``: why there is nothing else."""

    kernel: str
    variant: str
    n: int | None
    size: int
    threads: int
    limit: str
    moved: int
    goal: float | None
    time: Timing | None = None
    bytes_per_second: float | None = None
    limit_how: str | None = None
    limit_time: Timing | None = None
    limit_bytes_per_second: float | None = None
    ratio: float | None = None
    met: bool | None = None
    scaling: float | None = None
    limit_scaling: float | None = None
    scaling_met: bool | None = None
    plain: list[Plain] = field(default_factory=list)
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class SmallCall:
    """A call on few coordinates, from Python, with all that is new in the caches."""

    name: str
    size: int
    time: Timing
    goal: float | None
    met: bool | None
    plain: list[Plain]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)
