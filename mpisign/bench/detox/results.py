"""What is measured of one way among so many ranks, and how it grows with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from mpisign.bench.detox.ways import Way
from mpisign.bench.results import Timing


@dataclass(frozen=True)
class Row:
    """``error``: why there is nothing else. Seconds and bytes of one step.

    ``work``: processor time of all ranks together; ``wall``: what the clock says, the ranks taking
    turns on one core; ``computing``: of it packing, hashing, rules, tallies and unpacking, without
    messages and Python around them, the least of all turns. ``sent``: bytes that a rank sends,
    mean. ``of_plain``: work / that of the same rule without groups.
    """

    way: Way
    ranks: int
    work: Timing | None = None
    wall: Timing | None = None
    computing: float | None = None
    sent: float | None = None
    of_plain: float | None = None
    error: str | None = None

    @property
    def of_rank(self) -> float | None:
        """A rank's part of the work, on average."""
        return self.work.median / self.ranks if self.work else None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "label": self.way.label, "of_rank": self.of_rank}


@dataclass(frozen=True)
class Growth:
    """A way's exponents a: its work, and computing, grow as ranks^a, by least squares."""

    way: str
    work: float
    computing: float | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def beside(rows: Sequence[Row]) -> list[Row]:
    """The rows of one number of ranks, those in groups compared with those without."""
    plain = {
        row.way.rule: row.work.median
        for row in rows
        if row.work and row.way.kind in ("vote", "robust") and not row.way.groups
    }
    return [
        replace(row, of_plain=row.work.median / plain[row.way.rule])
        if row.work and row.way.groups and row.way.rule in plain
        else row
        for row in rows
    ]


def growths(rows: Sequence[Row]) -> list[Growth]:
    """Of each way that was measured among two numbers of ranks or more."""
    found = []
    for label in dict.fromkeys(row.way.label for row in rows):
        mine = [row for row in rows if row.way.label == label and row.work]
        if len({row.ranks for row in mine}) < 2:
            continue
        ranks = [row.ranks for row in mine]
        parts = [row.computing for row in mine]
        computing = _exponent(ranks, [p for p in parts if p]) if all(parts) else None
        work = _exponent(ranks, [row.work.median for row in mine if row.work])
        found.append(Growth(label, work, computing))
    return found


def _exponent(ranks: Sequence[int], seconds: Sequence[float]) -> float:
    return float(np.polyfit(np.log(ranks), np.log(seconds), 1)[0])
