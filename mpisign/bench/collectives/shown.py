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
    "method", "time", "+-", "slowest", "sent", "on link", "limit", "/ limit", "/ bare", "x fp32",
    "x fp16",
)  # fmt: skip
_LINES = {
    "bare": (plot.SKY, "P"),
    "fp32": (plot.ORANGE, "s"),
    "fp16": (plot.AMBER, "D"),
    "packbits": (plot.GREEN, "^"),
    "powersgd": (plot.PURPLE, "v"),
    "deepspeed": (plot.GREY, "X"),
}


def _tables(record: Any) -> Iterator[Table]:
    """One for each size and library, the times of an earlier run, and the goals."""
    for (size, via), rows in grouped(record.rows, "size", "via").items():
        tensors = "" if rows[0].tensors == 1 else f" in {rows[0].tensors} tensors"
        title = f"{coordinates(size)} coordinates{tensors}, {record.library(via)}"
        missing = [(row.method, f"not run: {row.error}") for row in rows if row.error]
        yield Table(title, _HEADS, [_cells(row) for row in rows if row.time], missing).filled()
    if record.earlier is not None:
        yield from _beside(record)
    yield from of_goals(record.goals)


def _beside(record: Any) -> Iterator[Table]:
    """Times beside those of the earlier run, of what both have."""
    heads = ("method", "coordinates", "over", "then", "now", "now / then")
    both = [(row, record.earlier.median(row)) for row in record.rows if row.time]
    cells = [
        (
            row.method, coordinates(row.size), row.via, seconds(then), seconds(_median(row)),
            _digits(_median(row) / then),
        )
        for row, then in both
        if then
    ]  # fmt: skip
    if cells:
        yield Table(f"beside {record.earlier.file}: {record.earlier.nodes}", heads, cells)


def _cells(row: Any) -> list[str]:
    counted = None
    if row.counted_sent is not None and row.counted_received is not None:
        counted = (row.counted_sent + row.counted_received) / 2
    return [
        row.method, seconds(row.time.median), spread(row.time), seconds(row.slowest),
        amount(row.sent if counted is None else None), amount(counted), seconds(row.limit),
        *map(_digits, (row.ratio, row.times_of_bare)),
        *map(_digits, (row.times_faster_than_fp32, row.times_faster_than_fp16)),
    ]  # fmt: skip


def _digits(value: float | None) -> str:
    """Three or more; below 0.1 four places."""
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}" if value >= 0.1 else f"{value:.4f}"


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
    calls = sorted({row.time.runs for row in rows})
    several = f"{calls[0]} to {calls[-1]}" if len(calls) > 1 else str(calls[0])
    parts = [f"Time: median of {several} calls, each behind a barrier, of the slowest rank"]
    if calls[-1] >= QUARTILES_FROM:
        parts[0] += ", +- half the quartiles' distance; slowest: of these calls"
    if any(row.counted_sent is not None for row in rows):
        parts.append("on link: bytes counted at each node's interface, each way")
    else:
        parts.append("sent: bytes by a rank")
    if any(row.limit for row in rows):
        how = "set by netlab" if record.nodes.rate else "measured in this run"
        parts.append(f"limit: the method's bytes at the link's rate, {how}; / limit: time / limit")
    if any(row.times_of_bare for row in rows):
        parts.append("/ bare: time / that of the faster bare vote")
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
        of_kind = [[r for r in rows if r.size == size and r.kind == kind] for size in sizes]
        found = [min(each, key=_median) for each in of_kind if each]
        label = "faster bare vote" if kind == "bare" else found[0].method if found else ""
        lines.append((found, colour, marker, label))
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
