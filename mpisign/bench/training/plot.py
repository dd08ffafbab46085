"""What was measured as a picture: seconds of a step, accuracy against time, or memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from mpisign.bench.errors import BenchError
from mpisign.bench.training.names import BASE, NONE
from mpisign.bench.training.record import Record
from mpisign.bench.training.results import AccuracyRow, MemoryRow, Row, StepRow

# Okabe and Ito's colours, which colour-blind people tell apart too.
_OURS, _THEIRS, _PLAIN, _LIMIT = "#0072B2", "#D55E00", "#666666", "#000000"
_COLOURS = ("#0072B2", "#009E73", "#56B4E9", "#CC79A7", "#F0E442", "#000000")
_PEERS = {BASE: "#D55E00", "horovod-fp32": "#E69F00"}
_GOAL = 1.15


def write(path: Path, record: Record) -> None:
    """Draws what the mode measured into ``path``; BenchError if that is nothing."""
    from matplotlib.figure import Figure

    rows = [row for row in record.rows if not row.error]
    if not rows:
        raise BenchError("--plot: nothing was measured")
    curves = isinstance(rows[0], AccuracyRow)
    height = 4.8 if curves else 1.5 + 0.36 * len(rows)
    figure = Figure(figsize=(8.4, height), dpi=150, layout="constrained")
    axis = figure.subplots()
    draw: Any = {StepRow: _steps, AccuracyRow: _accuracy, MemoryRow: _memory}[type(rows[0])]
    what = draw(axis, rows)
    axis.grid(True, color="#dddddd", linewidth=0.7)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_axisbelow(True)
    settings = record.settings
    model = f"{record.parameters / 1e6:.3g} M parameters, batches of {settings.batch_size} a rank"
    figure.suptitle(f"{what}\n{model}, {record.nodes}", fontsize=10.5, x=0.01, ha="left")
    figure.savefig(path)


def _steps(axis: Any, rows: Sequence[StepRow]) -> str:
    """A bar a way, the fastest at the top, beside the step without communication."""
    rows = sorted((r for r in rows if r.time), key=_median)
    for y, row in enumerate(rows):
        assert row.time is not None
        half = (row.time.high - row.time.low) / 2
        axis.barh(y, row.time.median, color=_colour(row), height=0.66, xerr=half, ecolor="#444444")
        told = "" if row.ratio is None or row.way == NONE else f"{row.ratio.median:.2f} x none"
        axis.annotate(
            told, (row.time.high, y), (6, 0), textcoords="offset points", va="center", fontsize=8
        )
    base = next((_median(r) for r in rows if r.way == NONE), None)
    if base is not None:
        axis.axvline(base, color=_PLAIN, linewidth=1, linestyle=":", label="no communication")
        label = f"the goal: {_GOAL:g} x none"
        axis.axvline(_GOAL * base, color=_LIMIT, linewidth=1, linestyle="--", label=label)
    _names(axis, rows)
    axis.set_xlim(0, 1.14 * max(r.time.high for r in rows if r.time))
    _engineering(axis.xaxis)
    return "Time of a training step, median of the rounds"


def _accuracy(axis: Any, rows: Sequence[AccuracyRow]) -> str:
    """Each seed's curve thin, their mean thick, on a scale on which a factor is a distance."""
    from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter

    colours = iter(_COLOURS * len(rows))
    for row in rows:
        colour = _PEERS.get(row.way) or next(colours)
        for run in row.runs:
            axis.plot(*_line(run.curve), color=colour, linewidth=0.6, alpha=0.5)
        points = list(zip(*(run.curve for run in row.runs), strict=True))
        x = [fmean(p.seconds for p in at) for at in points]
        y = [fmean(p.accuracy for p in at) for at in points]
        label = f"{row.way}, lr {row.lr:g}"
        if row.seconds is not None:
            label += f": {row.seconds:#.3g} s"
            axis.plot(row.seconds, row.wanted, "o", color=colour, markersize=7, zorder=4)
        axis.plot(x, y, color=colour, linewidth=2, label=label)
    wanted = rows[0].wanted
    axis.axhline(wanted, color=_LIMIT, linewidth=1, linestyle="--", label=f"{wanted:.1%}")
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0)))
    axis.xaxis.set_minor_formatter(NullFormatter())
    _engineering(axis.xaxis)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axis.set_ylim(max(0.0, wanted - 0.25), 1.0)
    axis.set(xlabel="seconds of training", ylabel="test accuracy")
    axis.legend(fontsize=8.5, frameon=False, loc="lower right")
    return "Test accuracy against time, each seed and their mean"


def _memory(axis: Any, rows: Sequence[MemoryRow]) -> str:
    """Traced bytes in planes beside the limit."""
    rows = [row for row in rows if row.ours]
    for y, row in enumerate(rows):
        axis.barh(y, (row.traced or 0) / row.plane, color=_OURS, height=0.66)
        if row.limit:
            x = row.limit / row.plane
            axis.plot([x, x], [y - 0.4, y + 0.4], color=_LIMIT, linewidth=2)
    axis.plot([], [], "|", color=_LIMIT, markersize=10, markeredgewidth=2, label="the limit")
    _names(axis, rows)
    axis.set_xlabel("planes of d / 8 bytes, beyond parameters, gradients and stated state")
    return "Peak of NumPy's and Python's memory in a step"


def _names(axis: Any, rows: Sequence[Row]) -> None:
    axis.set_yticks(range(len(rows)), [row.way for row in rows], fontsize=8.5)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    beside = {"loc": "lower center", "bbox_to_anchor": (0.5, 1), "ncols": 3}
    axis.legend(fontsize=8.5, frameon=False, **beside)


def _line(curve: Sequence[Any]) -> tuple[list[float], list[float]]:
    return [p.seconds for p in curve], [p.accuracy for p in curve]


def _median(row: StepRow) -> float:
    assert row.time is not None
    return row.time.median


def _colour(row: Row) -> str:
    return _PLAIN if row.way == NONE else _OURS if row.ours else _THEIRS


def _engineering(axis: Any) -> None:
    from matplotlib.ticker import EngFormatter

    axis.set_major_formatter(EngFormatter("s", sep=" "))
