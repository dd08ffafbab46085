"""What ``mpisign bench collectives`` shows: tables, notes, and times as a picture."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mpisign.bench import plot
from mpisign.bench.collectives.nodes import rate
from mpisign.bench.report import Shown
from mpisign.bench.table import (
    QUARTILES_FROM,
    Table,
    amount,
    coordinates,
    grouped,
    of_goals,
    seconds,
    spread,
    times,
)  # fmt: skip

_HEADS = (
    "method", "time", "+-", "algbw", "busbw", "sent", "on link", "limit", "x limit", "x fp32",
    "x fp16",
)  # fmt: skip
_LINES = {
    "fp32": (plot.ORANGE, "s"),
    "fp16": (plot.AMBER, "D"),
    "packbits": (plot.GREEN, "^"),
    "powersgd": (plot.PURPLE, "v"),
    "deepspeed": (plot.GREY, "X"),
}


def _tables(record: Any) -> Iterator[Table]:
    """One for each size and library, and the goals."""
    for (size, via), rows in grouped(record.rows, "size", "via").items():
        tensors = "" if rows[0].tensors == 1 else f" in {rows[0].tensors} tensors"
        title = f"{coordinates(size)} coordinates{tensors}, {record.library(via)}"
        missing = [(row.method, f"not run: {row.error}") for row in rows if row.error]
        yield Table(title, _HEADS, [_cells(row) for row in rows if row.time], missing).filled()
    yield from of_goals(record.goals)


def _cells(row: Any) -> list[str]:
    counted = None
    if row.counted_sent is not None and row.counted_received is not None:
        counted = (row.counted_sent + row.counted_received) / 2
    return [
        row.method, seconds(row.time.median), spread(row.time), _digits(row.algbw / 1e6),
        _digits(row.busbw / 1e6), amount(row.sent), amount(counted), seconds(row.limit),
        *map(_digits, (row.ratio, row.times_faster_than_fp32, row.times_faster_than_fp16)),
    ]  # fmt: skip


def _digits(value: float | None) -> str:
    """At least three."""
    return "" if value is None else f"{value:.0f}" if value >= 100 else f"{value:#.3g}"


def _notes(record: Any) -> Iterator[str]:
    for via in dict.fromkeys(link.via for link in record.links):
        links = [link for link in record.links if link.via == via]
        speeds = sorted(link.bandwidth for link in links)
        between = rate(speeds[0]) + (f" to {rate(speeds[-1])}" if len(speeds) > 1 else "")
        each = "node" if record.nodes.count > 1 else "rank"
        yield (
            f"{links[0].library}: {seconds(links[0].latency)} a message of 8 bytes; {between} into "
            f"each {each} while all send."
        )
    measured = [row for row in record.rows if row.time is not None]
    if measured:
        yield _columns(record, measured)
    yield from dict.fromkeys(row.notes for row in measured)


def _columns(record: Any, rows: list[Any]) -> str:
    """What the columns mean, of those that are there."""
    runs = max(row.time.runs for row in rows)
    parts = [f"Time: median of {runs} turn{'s' if runs > 1 else ''} of the slowest rank"]
    if runs >= QUARTILES_FROM:
        parts[0] += ", +- half the quartiles' distance"
    parts += [
        "algbw, busbw in MB/s: 4 bytes a coordinate / time, and bytes that a rank receives / time "
        "(of fp32 allreduce: algbw x 2 (p - 1) / p)",
        "sent: bytes by a rank",
    ]
    if any(row.counted_sent is not None for row in rows):
        parts.append("on link: counted at each node's interface, each way")
    if any(row.limit for row in rows):
        how = "set by netlab" if record.nodes.rate else "measured in this run"
        parts.append(f"limit: the method's bytes at the link's rate, {how}; x limit: time / limit")
    if any(row.times_faster_than_fp32 or row.times_faster_than_fp16 for row in rows):
        parts.append("x fp32, x fp16: times faster than those allreduces over the same wire")
    if any(row.tensors > 1 for row in rows):
        parts.append("votes but async take all tensors as one bucket, in one piece of memory")
    return "; ".join(parts) + "."


def _draw(record: Any) -> Any:
    """A row of panels for each library: times at all sizes, and those of the largest."""
    rows = [row for row in record.rows if row.time is not None]
    plot.measured(rows)
    vias = list(dict.fromkeys(row.via for row in rows))
    largest, several = max(row.size for row in rows), len({row.size for row in rows}) > 1
    most = max(sum(r.size == largest and r.via == via for r in rows) for via in vias)
    height = max(3.4, 1.5 + 0.3 * most) * len(vias) + 0.4
    title = f"Time to agree on a gradient, in and out: {record.nodes}"
    figure = plot.figure(6.6 * (1 + several), height, title)
    grid = figure.subplots(len(vias), 1 + several, squeeze=False)
    for axes, via in zip(grid, vias, strict=True):
        mine = [row for row in rows if row.via == via]
        what = "" if several else f"{record.library(via)}, "
        if several:
            _lines(axes[0], mine, record.library(via))
        title = f"{what}{coordinates(largest)} coordinates; times faster than fp32"
        _dots(axes[-1], [row for row in mine if row.size == largest], title)
    for index, column in enumerate(grid.T):  # so that libraries can be compared
        _same_range(column, "y" if several and index == 0 else "x")
    return figure


def _lines(axis: Any, rows: list[Any], title: str) -> None:
    """The fastest vote of each size as one line, and a line for each of the others."""
    sizes = sorted({row.size for row in rows})
    votes = [[r for r in rows if r.size == size and r.kind == "vote"] for size in sizes]
    best = [min(v, key=_median) for v in votes if v]
    lines = [(best, plot.BLUE, "o", "fastest vote")]
    for kind, (colour, marker) in _LINES.items():
        found = [row for row in rows if row.kind == kind]
        lines.append((found, colour, marker, found[0].method if found else ""))
    for found, colour, marker, label in lines:
        if found:
            x, y = [row.size for row in found], [_median(row) for row in found]
            axis.plot(x, y, f"{marker}-", color=colour, linewidth=1.5, markersize=5, label=label)
    limits = [(row.size, row.limit) for row in best if row.limit]
    if limits:
        label = "its limit on this wire"
        axis.plot(*zip(*limits, strict=True), ":", color=plot.BLACK, linewidth=1.2, label=label)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xticks(sizes, [coordinates(size) for size in sizes])
    axis.minorticks_off()
    plot.in_seconds(axis.yaxis)
    axis.set_xlabel("coordinates")
    _finish(axis, title, "best")


def _dots(axis: Any, rows: list[Any], title: str) -> None:
    """Each method's time and limit, the fastest at the top."""
    rows = sorted(rows, key=_median)
    limits, medians = [row.limit for row in rows], [_median(row) for row in rows]
    votes = [row.kind == "vote" for row in rows]
    plot.rows(
        axis,
        [row.method for row in rows],
        (
            "mpisign",
            "o",
            plot.BLUE,
            [m if v else None for m, v in zip(medians, votes, strict=True)],
        ),
        (
            "others",
            "D",
            plot.ORANGE,
            [None if v else m for m, v in zip(medians, votes, strict=True)],
        ),
        ("the wire's limit", "|", plot.BLACK, limits),
        joined=zip(limits, medians, strict=True),
    )
    for y, row in enumerate(rows):
        if row.kind != "fp32":
            plot.beside(axis, times(row.times_faster_than_fp32), medians[y], y)
    axis.set_xscale("log")
    every = medians + [limit for limit in limits if limit]
    axis.set_xlim(min(every) / 1.3, max(every) * 2.2)  # room for what is written beside
    plot.in_seconds(axis.xaxis)
    _finish(axis, title, "upper right")


def _finish(axis: Any, title: str, legend: str) -> None:
    axis.set_title(title, fontsize=10, loc="left")
    plot.finish(axis)
    axis.legend(**plot.SMALL, loc=legend)


def _median(row: Any) -> float:
    return float(row.time.median)


def _same_range(axes: Any, which: str) -> None:
    ends = [getattr(axis, f"get_{which}lim")() for axis in axes]
    for axis in axes:
        getattr(axis, f"set_{which}lim")(min(e[0] for e in ends), max(e[1] for e in ends))


SHOWN = Shown(_tables, _notes, _draw)
