"""Times as a picture: votes beside the others, and how far each is from its wire's limit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mpisign.bench.errors import BenchError
from mpisign.bench.table import coordinates
from mpisign.bench.wire.record import Record
from mpisign.bench.wire.results import Row

# Okabe and Ito's colours, which colour-blind people tell apart too; shapes differ as well.
_OURS, _THEIRS, _LIMIT = "#0072B2", "#D55E00", "#000000"
_LINES = {
    "fp32": ("#D55E00", "s"),
    "fp16": ("#E69F00", "D"),
    "packbits": ("#009E73", "^"),
    "powersgd": ("#CC79A7", "v"),
    "deepspeed": ("#666666", "X"),
}


def write(path: Path, record: Record) -> None:
    """Draws a row of panels for each wire: times at all sizes, and those of the largest."""
    from matplotlib.figure import Figure

    rows = [row for row in record.rows if row.time is not None]
    if not rows:
        raise BenchError("--plot: nothing was measured")
    vias = list(dict.fromkeys(row.via for row in rows))
    largest = max(row.size for row in rows)
    several = len({row.size for row in rows}) > 1
    ways = max(sum(r.size == largest and r.via == via for r in rows) for via in vias)
    height = max(3.4, 1.5 + 0.3 * ways)
    figure = Figure(
        figsize=(6.6 * (1 + several), height * len(vias) + 0.4), dpi=150, layout="constrained"
    )
    grid = figure.subplots(len(vias), 1 + several, squeeze=False)
    for axes, via in zip(grid, vias, strict=True):
        mine = [row for row in rows if row.via == via]
        axes = list(axes)
        if several:
            _lines(axes.pop(0), mine, record.library(via))
        what = "" if several else f"{record.library(via)}, "
        title = f"{what}{coordinates(largest)} coordinates; times faster than fp32"
        _dots(axes[0], [row for row in mine if row.size == largest], title)
    for index, column in enumerate(grid.T):  # so that wires can be compared
        _same_range(column, "y" if several and index == 0 else "x")
    figure.suptitle(
        f"Time to agree on a gradient, in and out: {record.nodes}", fontsize=11, x=0.01, ha="left"
    )
    figure.savefig(path)


def _lines(axis: Any, rows: list[Row], title: str) -> None:
    """The fastest vote of each size as one line, and a line for each of the others."""
    sizes = sorted({row.size for row in rows})
    votes = [[r for r in rows if r.size == size and r.kind == "vote"] for size in sizes]
    best = [min(v, key=_median) for v in votes if v]
    if best:
        _line(axis, best, _OURS, "o", "fastest vote")
        limits = [(row.size, row.limit) for row in best if row.limit]
        if limits:
            x, y = zip(*limits, strict=True)
            axis.plot(x, y, ":", color=_LIMIT, linewidth=1.2, label="its limit on this wire")
    for kind, (colour, marker) in _LINES.items():
        found = [row for row in rows if row.kind == kind]
        if found:
            _line(axis, found, colour, marker, found[0].way)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xticks(sizes, [coordinates(size) for size in sizes])
    axis.minorticks_off()
    _seconds(axis.yaxis)
    axis.set_xlabel("coordinates")
    axis.set_title(title, fontsize=10, loc="left")
    _finish(axis)
    axis.legend(fontsize=8, frameon=False)


def _line(axis: Any, rows: list[Row], colour: str, marker: str, label: str) -> None:
    x, y = [row.size for row in rows], [_median(row) for row in rows]
    axis.plot(x, y, marker + "-", color=colour, linewidth=1.5, markersize=5, label=label)


def _dots(axis: Any, rows: list[Row], title: str) -> None:
    """Each way's time and limit, the fastest at the top."""
    rows = sorted(rows, key=_median)
    for y, row in enumerate(rows):
        colour, marker = (_OURS, "o") if row.kind == "vote" else (_THEIRS, "D")
        median = _median(row)
        if row.limit:
            axis.plot([row.limit, median], [y, y], color="#bbbbbb", linewidth=1.5, zorder=1)
            axis.plot([row.limit] * 2, [y - 0.35, y + 0.35], color=_LIMIT, linewidth=2, zorder=2)
        axis.plot(median, y, marker, color=colour, markersize=6, zorder=3)
        faster = row.times_faster_than_fp32
        if row.kind != "fp32" and faster is not None:
            told = f"{faster:.0f}x" if faster >= 10 else f"{faster:#.2g}x"
            axis.annotate(
                told, (median, y), (7, 0), textcoords="offset points", va="center", fontsize=7.5
            )
    axis.plot([], [], "o", color=_OURS, markersize=6, label="mpisign")
    axis.plot([], [], "D", color=_THEIRS, markersize=6, label="others")
    if any(row.limit for row in rows):
        axis.plot(
            [], [], "|", color=_LIMIT, markersize=10, markeredgewidth=2, label="the wire's limit"
        )
    axis.set_yticks(range(len(rows)), [row.way for row in rows], fontsize=8.5)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_xscale("log")
    every = [_median(row) for row in rows] + [row.limit for row in rows if row.limit]
    axis.set_xlim(min(every) / 1.3, max(every) * 2.2)  # room for what is written beside
    _seconds(axis.xaxis)
    axis.set_title(title, fontsize=10, loc="left")
    _finish(axis)
    axis.legend(fontsize=8, frameon=False, loc="upper right")


def _median(row: Row) -> float:
    assert row.time is not None
    return row.time.median


def _seconds(axis: Any) -> None:
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0), numticks=12))
    axis.set_major_formatter(EngFormatter("s", sep=" "))
    axis.set_minor_formatter(NullFormatter())


def _finish(axis: Any) -> None:
    axis.grid(True, color="#dddddd", linewidth=0.7)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_axisbelow(True)


def _same_range(axes: Any, which: str) -> None:
    ends = [getattr(axis, f"get_{which}lim")() for axis in axes]
    for axis in axes:
        getattr(axis, f"set_{which}lim")(min(e[0] for e in ends), max(e[1] for e in ends))
