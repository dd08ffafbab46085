"""What ``mpisign bench kernels`` shows: tables, notes, and shares of the limits as a picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from mpisign.bench import plot
from mpisign.bench.measure import Timing, busy
from mpisign.bench.report import Shown
from mpisign.bench.table import (
    QUARTILES_FROM,
    Table,
    amount,
    coordinates,
    goals_met,
    grouped,
    seconds,
    spread,
    times,
    verdict,
)  # fmt: skip

_HEADS = (
    "kernel",
    "with",
    "n",
    "time",
    "+-",
    "moved",
    "GB/s",
    "of limit",
    "goal",
    "",
    "faster than",
)
_CALL_HEADS = ("call", "time", "+-", "goal", "", "faster than")
_TIES = {"positive": (plot.BLUE, "o"), "random": (plot.AMBER, "s"), "zero": (plot.GREEN, "^")}
_PLAIN = "the fastest plain expression"
_CURVES = 3  # numbers of planes from which majorities have a panel of their own
_LEGEND = {**plot.ABOVE, "ncols": 4, "handlelength": 1.4, "columnspacing": 1.4}


def _tables(record: Any) -> Iterator[Table]:
    """One for each size and number of threads, one for small calls."""
    for (size, threads), rows in grouped(record.rows, "size", "threads").items():
        title = f"{coordinates(size)} coordinates"
        if record.device["kind"] == "cpu":
            title += f", {threads} thread{'s' if threads > 1 else ''}"
        heads = list(_HEADS)
        scaled = any(row.scaling for row in rows)
        if scaled:
            heads[8:10] = ["times one", "memory", ""]
        missing = [(_name(row), f"not measured: {row.error}") for row in rows if row.error]
        cells = [_cells(row, scaled) for row in rows if row.time]
        yield Table(title, heads, cells, missing).filled()
    if record.calls:
        title = f"calls of {record.calls[0].size:,} coordinates from Python"
        cells = [
            [c.name, seconds(c.time.median), spread(c.time), seconds(c.goal), verdict(c.met),
             _beside(c)]
            for c in record.calls
        ]  # fmt: skip
        yield Table(title, _CALL_HEADS, cells).filled()


def _cells(row: Any, scaled: bool) -> list[str]:
    if scaled:
        goal = [f"{x:.2f}" if x else "" for x in (row.scaling, row.limit_scaling)]
        goal.append(verdict(row.scaling_met))
    else:
        goal = ["" if row.goal is None else f"{row.goal:.2f}", verdict(row.met)]
    return [
        row.kernel, row.variant, "" if row.n is None else str(row.n), seconds(row.time.median),
        spread(row.time), amount(row.moved), f"{(row.bytes_per_second or 0) / 1e9:.1f}",
        "" if row.ratio is None else f"{row.ratio:.2f} {row.limit}", *goal, _beside(row),
    ]  # fmt: skip


def _beside(row: Any) -> str:
    return ", ".join(f"{times(p.times_slower)} {p.name}" for p in row.plain)


def _name(row: Any) -> str:
    n = "" if row.n is None else f", {row.n} planes"
    return f"{row.kernel}: {row.variant}{n}"


def _notes(record: Any) -> Iterator[str]:
    yield from _limits(record)
    yield _columns(record)
    limits = [row.limit_time for row in record.rows if row.limit_time is not None]
    yield busy(limits, "Shares of the limit mean little in this run.")
    verdicts = [v for row in record.rows for v in (row.met, row.scaling_met)]
    yield goals_met(verdicts + [call.met for call in record.calls])


def _limits(record: Any) -> Iterator[str]:
    """A line for each size and number of threads: the limits as they were measured."""
    measured = [r for r in record.rows if r.limit_bytes_per_second and r.limit_how]
    for (size, threads), rows in grouped(measured, "size", "threads").items():
        parts, kinds = [], grouped(rows, "limit")
        for kind in ("read", "write", "copy"):
            of_kind = kinds.get((kind,), [])
            if speeds := sorted((r.limit_bytes_per_second / 1e9, r.limit_how) for r in of_kind):
                middle, how = speeds[len(speeds) // 2]
                ends = f"{speeds[0][0]:.1f} to {speeds[-1][0]:.1f}"
                parts.append(f"{kind} {middle:.1f} ({ends}, {how})")
        more = f", {threads} threads" if threads > 1 else ""
        yield f"Limits at {coordinates(size)}{more}, GB/s: {', '.join(parts)}."


def _columns(record: Any) -> str:
    """What the columns mean, of those that are there."""
    rows = [row for row in record.rows if row.time is not None]
    timings: list[Timing] = [row.time for row in (*rows, *record.calls)]
    parts = []
    if timings:
        runs = max(timing.runs for timing in timings)
        half = ", +- half the quartiles' distance" if runs >= QUARTILES_FROM else ""
        parts.append(f"time: median of {runs} run{'s' if runs > 1 else ''}{half}")
    if rows:
        parts.append("moved: bytes that the operation must read and write")
    if any(row.ratio is not None for row in rows):
        parts.append(
            "of limit: its speed by that of plain reading, writing or copying as many bytes, in "
            "turns with it"
        )
    if any(row.plain for row in (*rows, *record.calls)):
        parts.append(
            "faster than: how many times longer the plain expression takes; below 1 it is faster"
        )
    line = "; ".join(parts)
    return f"{line[0].upper()}{line[1:]}." if line else ""


def _draw(record: Any) -> Any:
    """Each kernel beside its goal and plain expressions: largest size, first number of threads."""
    rows = [row for row in record.rows if row.ratio is not None]
    plot.measured(rows, "nothing was measured that has a ratio to draw")
    size, first = max(row.size for row in rows), record.rows[0].threads
    rows = [row for row in rows if row.size == size and row.threads == first]
    curves = [row for row in rows if row.kernel == "majority" and row.variant.startswith("ties")]
    if len({row.n for row in curves}) < _CURVES:
        curves = []
    bars = [row for row in rows if row not in curves]
    what = record.device.get("gpu") or record.device.get("cpu")
    threads = f", {first} thread{'s' if first > 1 else ''}" if "cpu" in record.device else ""
    title = (
        f"Speed of kernels by the limit of memory: {coordinates(size)} coordinates, {what}{threads}"
    )
    panels = bool(bars) + bool(curves)
    figure = plot.figure(7.2 * panels, max(4.6, 1.6 + 0.27 * len(bars)), title)
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    if bars:
        _dots(axes.pop(0), bars)
    if curves:
        _curves(axes.pop(0), curves)
    return figure


def _dots(axis: Any, rows: list[Any]) -> None:
    ratios, plain = [row.ratio for row in rows], [_plain(row) for row in rows]
    plot.rows(
        axis,
        [f"{_name(row)}  ({row.limit})" for row in rows],
        ("mpisign", "o", plot.BLUE, ratios),
        (_PLAIN, "D", plot.ORANGE, plain),
        ("goal", "|", plot.BLACK, [row.goal for row in rows]),
        joined=zip(plain, ratios, strict=True),
    )
    axis.set_xlabel("share of the limit named at the left")
    _finish(axis, rows, vertical=False)


def _plain(row: Any) -> float | None:
    """The share of the limit that the fastest plain expression reaches."""
    return row.ratio / min(p.times_slower for p in row.plain) if row.plain else None


def _curves(axis: Any, rows: list[Any]) -> None:
    def line(
        points: Sequence[tuple[int, Any]], style: str, colour: str, label: str, **more: Any
    ) -> None:
        if points:
            axis.plot(*zip(*sorted(points), strict=True), style, color=colour, label=label, **more)

    for ties, (colour, marker) in _TIES.items():
        points = [(row.n, row.ratio) for row in rows if row.variant == f"ties {ties}"]
        line(points, f"{marker}-", colour, f"ties {ties}", linewidth=1.5)
    goals = list({(row.n, row.goal) for row in rows if row.goal is not None})
    line(goals, "_", plot.BLACK, "goal", markersize=13, markeredgewidth=2)
    plain = [(row.n, _plain(row)) for row in rows if row.plain]
    line(plain, "D", plot.ORANGE, _PLAIN, markersize=5.5)
    ticks = [1 << k for k in range(1, 11) if 1 << k <= max(row.n for row in rows)]
    axis.set_xscale("log", base=2)
    axis.set_xticks(ticks, [str(n) for n in ticks])
    axis.set_xlabel("majority: planes in the stack")
    axis.set_ylabel(f"share of {rows[0].limit} bandwidth")
    _finish(axis, rows, vertical=True)


def _finish(axis: Any, rows: list[Any], vertical: bool) -> None:
    top = max(max(row.ratio, _plain(row) or 0.0) for row in rows)
    (axis.set_ylim if vertical else axis.set_xlim)(0, max(1.05, 1.05 * top))
    line = axis.axhline if vertical else axis.axvline
    line(1, color=plot.GREY, linewidth=1, zorder=0.9, label="plain read, write or copy")
    plot.in_percent(axis.yaxis if vertical else axis.xaxis)
    plot.finish(axis)
    axis.legend(**_LEGEND)


SHOWN = Shown(_tables, _notes, _draw)
