"""The shares of the limits as a picture: each kernel beside its goal and the plain ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mpisign.bench.errors import BenchError
from mpisign.bench.record import Record
from mpisign.bench.results import Row
from mpisign.bench.table import coordinates

# Okabe and Ito's colours, which colour-blind people tell apart too; shapes differ as well.
_OURS, _PLAIN, _GOAL = "#0072B2", "#D55E00", "#000000"
_TIES = {"positive": ("#0072B2", "o"), "random": ("#E69F00", "s"), "zero": ("#009E73", "^")}
_LIMIT, _LIMIT_LABEL = "#555555", "plain read, write or copy"
_PLAIN_LABEL = "the fastest plain way"
_CURVES = 3  # majorities of at least so many n make a panel of their own


def check(path: Path) -> None:
    """Raises BenchError if matplotlib is missing or cannot write such a file."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BenchError(f"--plot needs matplotlib ({error}): pip install matplotlib") from error
    formats = sorted(Figure().canvas.get_supported_filetypes())
    if path.suffix[1:].lower() not in formats:
        raise BenchError(f"--plot {path}: the name must end in one of .{', .'.join(formats)}")


def write(path: Path, record: Record) -> None:
    """Draws the largest size measured, with the first number of threads into ``path``."""
    from matplotlib.figure import Figure

    rows = [row for row in record.rows if row.ratio is not None]
    size = max((row.size for row in rows), default=0)
    first = record.rows[0].threads if record.rows else 1
    rows = [row for row in rows if row.size == size and row.threads == first]
    if not rows:
        raise BenchError("--plot: nothing was measured that has a ratio to draw")
    curves = [row for row in rows if row.kernel == "majority" and row.variant.startswith("ties")]
    if len({row.n for row in curves}) < _CURVES:
        curves = []
    bars = [row for row in rows if row not in curves]
    panels = bool(bars) + bool(curves)
    height = max(4.6, 1.6 + 0.27 * len(bars))
    figure = Figure(figsize=(7.2 * panels, height), dpi=150, layout="constrained")
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    if bars:
        _dots(axes.pop(0), bars)
    if curves:
        _curves(axes.pop(0), curves)
    what = record.device.get("gpu") or record.device.get("cpu")
    threads = f", {first} thread{'s' if first > 1 else ''}" if "cpu" in record.device else ""
    figure.suptitle(
        f"How near kernels come to the limit of memory: {coordinates(size)} coordinates, "
        f"{what}{threads}",
        fontsize=11,
        x=0.01,
        ha="left",
    )
    figure.savefig(path)


def _dots(axis: Any, rows: list[Row]) -> None:
    axis.plot([], [], "o", color=_OURS, markersize=7, label="mpisign")
    for y, row in enumerate(rows):
        ratio = row.ratio or 0.0
        if row.plain:
            axis.plot([_plain(row), ratio], [y, y], color="#bbbbbb", linewidth=1.5, zorder=1)
            axis.plot(_plain(row), y, "D", color=_PLAIN, markersize=5.5)
        axis.plot(ratio, y, "o", color=_OURS, markersize=7)
        if row.goal is not None:
            axis.plot([row.goal] * 2, [y - 0.4, y + 0.4], color=_GOAL, linewidth=2, zorder=3)
    if any(row.goal is not None for row in rows):
        axis.plot([], [], "|", color=_GOAL, markersize=11, markeredgewidth=2, label="goal")
    if any(row.plain for row in rows):
        axis.plot([], [], "D", color=_PLAIN, markersize=5.5, label=_PLAIN_LABEL)
    axis.set_yticks(range(len(rows)), [_name(row) for row in rows], fontsize=8.5)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_xlabel("share of the limit named at the left")
    _finish(axis, rows, vertical=False)


def _plain(row: Row) -> float:
    """The share of the limit that the fastest plain way reaches."""
    return (row.ratio or 0.0) / min(p.times_slower for p in row.plain)


def _curves(axis: Any, rows: list[Row]) -> None:
    for ties, (colour, marker) in _TIES.items():
        points = sorted(
            (row.n or 0, row.ratio or 0.0) for row in rows if row.variant == f"ties {ties}"
        )
        if points:
            x, y = zip(*points, strict=True)
            axis.plot(x, y, marker + "-", color=colour, linewidth=1.5, label=f"ties {ties}")
    goals = sorted({(row.n or 0, row.goal) for row in rows if row.goal is not None})
    if goals:
        x, y = zip(*goals, strict=True)
        axis.plot(x, y, "_", color=_GOAL, markersize=13, markeredgewidth=2, label="goal")
    plain = sorted((row.n or 0, _plain(row)) for row in rows if row.plain)
    if plain:
        x, y = zip(*plain, strict=True)
        axis.plot(x, y, "D", color=_PLAIN, markersize=5.5, label=_PLAIN_LABEL)
    ticks = [
        n for n in (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024) if n <= max(r.n or 0 for r in rows)
    ]
    axis.set_xscale("log", base=2)
    axis.set_xticks(ticks, [str(n) for n in ticks])
    axis.set_xlabel("majority: planes in the stack")
    axis.set_ylabel(f"share of {rows[0].limit} bandwidth")
    _finish(axis, rows, vertical=True)


def _finish(axis: Any, rows: list[Row], vertical: bool) -> None:
    from matplotlib.ticker import PercentFormatter

    top = max(max(row.ratio or 0.0, _plain(row) if row.plain else 0.0) for row in rows)
    (axis.set_ylim if vertical else axis.set_xlim)(0, max(1.05, 1.05 * top))
    which = axis.yaxis if vertical else axis.xaxis
    line = axis.axhline if vertical else axis.axvline
    line(1, color=_LIMIT, linewidth=1, zorder=0.9, label=_LIMIT_LABEL)
    which.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axis.grid(True, color="#dddddd", linewidth=0.7)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_axisbelow(True)
    axis.legend(
        loc="lower center",
        bbox_to_anchor=(0.5, 1),
        ncols=4,
        fontsize=8.5,
        handlelength=1.4,
        columnspacing=1.4,
        frameon=False,
    )


def _name(row: Row) -> str:
    n = "" if row.n is None else f", {row.n} planes"
    return f"{row.kernel}: {row.variant}{n}  ({row.limit})"
