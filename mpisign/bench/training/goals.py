"""What this project asks of training, wherever a run is one that a goal speaks of."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean

from mpisign.bench.training.names import BASE
from mpisign.bench.training.results import AccuracyRow, MemoryRow, Row, StepRow
from mpisign.bench.wire.goals import Goal
from mpisign.bench.wire.nodes import Nodes

_GIGABIT = 125e6  # bytes per second
_PARAMETERS = 10_000_000
_OVERLAP = ("horovod-signum", "ddp-signum")


def goals(rows: list[Row], nodes: Nodes, parameters: int) -> Iterator[Goal]:
    """Of steps and of accuracy in netlab at 1 Gbit/s and 4 nodes, of memory anywhere."""
    for row in rows:
        if isinstance(row, MemoryRow) and row.ours and row.traced is not None and row.limit:
            yield Goal(f"{row.way}: memory / limit", parameters, row.traced / row.limit, "<= 1")
    if nodes.rate != _GIGABIT or not nodes.count == len(nodes.of) == 4 or parameters < _PARAMETERS:
        return
    for row in rows:
        if isinstance(row, StepRow) and row.way in _OVERLAP and row.ratio:
            what = f"{row.way}: step / without communication"
            yield Goal(what, parameters, row.ratio.median, "<= 1.15")
    measured = [row for row in rows if isinstance(row, AccuracyRow) and row.runs]
    base = next((row for row in measured if row.way == BASE), None)
    ours = [row for row in measured if row.ours]
    if base is None or not ours:
        return
    for row in ours:
        if row.less is not None:
            what = f"{row.way}: times less time to {row.wanted:.0%} than fp16"
            yield Goal(what, parameters, row.less, ">= 5")
    best = max(ours, key=lambda row: fmean(row.final))
    points = 100 * (fmean(base.final) - fmean(best.final))
    yield Goal(f"{best.way}: points of accuracy below fp16", parameters, points, "<= 0.5")
