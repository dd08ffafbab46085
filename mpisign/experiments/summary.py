"""Statistics over the seeds of a group: mean, spread, bits."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mpisign.experiments.plan import Group, Record

Point = tuple[float, float, float, float]  # step or bytes; mean, lowest and highest metric


@dataclass(frozen=True)
class Summary:
    """One group's cells that are recorded. ``values``: the metric of each that did not diverge.

    ``lr``: the rate chosen; None: not known yet.
    """

    group: Group
    lr: float | None
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    diverged: int
    records: tuple[Record, ...]

    @property
    def mean(self) -> float | None:
        """Of ``values``; None without any."""
        return statistics.mean(self.values) if self.values else None

    @property
    def spread(self) -> float | None:
        """The sample's standard deviation; None for fewer than two values."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def code_bits(self) -> float | None:
        """Bits of a rank's own message in a step for each coordinate, by the code's length."""
        found = [r["result"]["bits"] for r in self.records]
        return statistics.mean(found) if found else None

    def also(self, name: str) -> list[float]:
        """A figure beside the metric, of each seed that did not diverge and has it."""
        return [float(r["result"][name]) for r in self.records if name in r["result"]]

    @property
    def recalls(self) -> list[list[float]]:
        """Of each seed that did not diverge: the recall of each digit."""
        return [r["result"]["recall"] for r in self.records if "recall" in r["result"]]

    def curve(self, along: str) -> list[Point]:
        """Mean, lowest and highest metric of the seeds by step, or by bytes that a rank sent."""
        curves = [r["result"]["curve"] for r in self.records if r["result"]["diverged"] is None]
        points = []
        for rows in zip(*curves, strict=False):
            values = [test for _, test, _ in rows if test is not None]
            if not values:
                continue
            x = float(rows[0][0])
            if along == "sent":
                x *= statistics.mean(r["result"]["sent"] for r in self.records)
            points.append((x, statistics.mean(values), min(values), max(values)))
        return points


def summaries(groups: Sequence[Group], records: Mapping[str, Any]) -> list[Summary]:
    """One for each group, in the same order, of what is recorded so far."""
    found = []
    for group in groups:
        lr = group.rate(records)
        cells = [] if lr is None else [c for c in group.reported(lr) if c.key in records]
        results = [records[c.key]["result"] for c in cells]
        found.append(
            Summary(
                group=group,
                lr=lr,
                seeds=tuple(c.seed for c in cells),
                values=tuple(float(r["test"]) for r in results if r["diverged"] is None),
                diverged=sum(r["diverged"] is not None for r in results),
                records=tuple(records[c.key] for c in cells),
            )
        )
    return found
