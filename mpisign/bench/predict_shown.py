"""Tables and the picture of ``mpisign bench predict``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

from mpisign.bench import plot
from mpisign.bench.collectives.nodes import rate
from mpisign.bench.report import Shown
from mpisign.bench.table import Table, coordinates, seconds, verdict
from mpisign.predict.shown import LOOKS

_HEADS = ("parameters", "method", "with", "alone", "predicted", "measured", "off", "")


def _tables(record: Any) -> Iterator[Table]:
    rows = [
        (
            coordinates(row.size), row.method, "overlap" if row.overlap else "",
            seconds(row.none), seconds(row.predicted), seconds(row.measured), percent(row.off),
            verdict(row.within),
        )
        for row in record.rows if not row.error
    ]  # fmt: skip
    missing = [(f"{row.method}, {coordinates(row.size)}", row.error) for row in record.rows
               if row.error]  # fmt: skip
    yield Table("seconds per step, predicted and measured", _HEADS, rows, missing)


def percent(value: float | None) -> str:
    """With its sign."""
    return "" if value is None else f"{value:+.0%}"


def summary(rows: Sequence[Any]) -> str:
    """How many are within 15%, and how far off they are."""
    off = [abs(row.off) for row in rows if row.off is not None]
    if not off:
        return ""
    within = sum(row.within for row in rows if row.off is not None)
    return (
        f"{within} of {len(off)} predictions are within 15% of the measured step; off by "
        f"{median(off):.0%} in the median, {max(off):.0%} at most."
    )


def _notes(record: Any) -> Iterator[str]:
    yield summary(record.rows)
    remote = record.remote
    if remote is not None:
        yield (
            f"Measured before the steps, by all ranks at once: {seconds(remote.latency)} an "
            f"exchange, {seconds(remote.per_message) or '0 s'} each further message, "
            f"{rate(remote.bandwidth)} into each node, {remote.share:.0%} of it where "
            f"each exchanges with all others ({remote.where})."
        )
    yield (
        "alone: the measured step without communication, in turns with the method's; "
        "predictions start from it; off: of the "
        "measured step, negative: the prediction is too short; met: within 15%."
    )


def _draw(record: Any) -> Any:
    """Predicted over measured, with the band of 15%."""
    rows = [row for row in record.rows if row.measured is not None]
    plot.measured(rows)
    figure = plot.figure(5.6, 5.2, f"Steps, predicted and measured\n{record.nodes}")
    axis = figure.subplots()
    for name in dict.fromkeys(row.method for row in rows):
        colour, _ = LOOKS[name]
        mine = [row for row in rows if row.method == name]
        x, y = [row.measured for row in mine], [row.predicted for row in mine]
        axis.plot(x, y, "o", color=colour, label=name, markersize=5)
    every = [row.measured for row in rows] + [row.predicted for row in rows]
    ends = [min(every) / 1.3, max(every) * 1.3]
    axis.plot(ends, ends, color=plot.BLACK, linewidth=0.8)
    axis.fill_between(
        ends, [0.85 * e for e in ends], [1.15 * e for e in ends], color=plot.LIGHT, alpha=0.4,
        linewidth=0, label="within 15%",
    )  # fmt: skip
    axis.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    plot.in_seconds(axis.xaxis)
    plot.in_seconds(axis.yaxis)
    axis.set(xlabel="measured", ylabel="predicted")
    plot.finish(axis)
    axis.legend(**plot.SMALL, loc="upper left")
    return figure


SHOWN = Shown(_tables, _notes, _draw)
