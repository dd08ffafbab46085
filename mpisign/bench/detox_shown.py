"""What ``mpisign bench detox`` shows: tables, notes, and work over ranks as a picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mpisign.bench import plot
from mpisign.bench.report import Shown
from mpisign.bench.table import Table, amount, coordinates, seconds, spread

_HEADS = ("method", "f", "work", "+-", "a rank", "computing", "clock", "sent", "of plain")
_LINEAR = 1.25  # an exponent that is called nearly linear, at most
_COLOURS = (
    plot.BLUE, plot.ORANGE, plot.GREEN, plot.PURPLE, plot.AMBER, plot.SKY, plot.BLACK
)  # fmt: skip
_STYLES = {"here": (":", "x"), "byzfl": ("-.", "+")}


def _tables(record: Any) -> Iterator[Table]:
    """One for each number of ranks, and how each method grows."""
    r, size = record.settings.redundancy, coordinates(record.parameters)
    for ranks in record.settings.ranks:
        rows = [row for row in record.rows if row.ranks == ranks]
        missing = [(row.label, f"not measured: {row.error}") for row in rows if row.error]
        title = f"{ranks} ranks, {ranks // r} groups; {size} parameters"
        yield Table(title, _HEADS, [_cells(row) for row in rows if row.work], missing).filled()
    if record.growth:
        heads = ("method", "work", "a rank", "computing", "it is nearly linear")
        cells = []
        for g in record.growth:
            part, linear = "", ""
            if g.computing is not None:
                part, linear = f"p^{g.computing:.2f}", "yes" if g.computing <= _LINEAR else "no"
            cells.append([g.method, f"p^{g.work:.2f}", f"p^{g.work - 1:.2f}", part, linear])
        first, last = min(record.settings.ranks), max(record.settings.ranks)
        yield Table(f"growth with the ranks p, {first} to {last}", heads, cells)


def _cells(row: Any) -> list[str]:
    collective = row.method.collective
    return [
        row.label, "" if row.method.kind == "vote" else str(row.method.f),
        seconds(row.work.median), spread(row.work), seconds(row.of_rank) if collective else "",
        seconds(row.computing), seconds(row.wall.median), amount(row.sent) if row.sent else "",
        "" if row.of_plain is None else f"{row.of_plain:.2f}",
    ]  # fmt: skip


def _notes(record: Any) -> Iterator[str]:
    s = record.settings
    yield (
        f"work: processor time of a step, all ranks together, median of {s.repeat} turns of "
        f"{s.steps} steps; +- is half the quartiles' distance; a rank: work / ranks; computing: of "
        "the work packing, hashing, rules, tallies, unpacking, without messages and Python around "
        "them, by the clock, least of the turns; clock: what a step took here; sent: bytes by a "
        "rank; of plain: work / that of the same rule without groups; f: hostile rows (ranks, "
        "groups) that the rule is made for, as many as Bulyan takes. one place: the rule on the "
        "same rows at once, as a parameter server has them, ByzFL's beside ours (torch tensors, "
        "one thread)."
    )
    yield (
        "Ranks are threads of one process that compute one after the other, and messages are "
        "copies in memory. So work is what all ranks do together; divided by the ranks it is the "
        "time of a step where every rank has a core of its own and the wire is free. The bytes "
        "sent show what a wire carries."
    )
    yield f"Nearly linear: an exponent of at most {_LINEAR:g}, fitted by least squares."


def _draw(record: Any) -> Any:
    """Two panels: all work, and what of it is computing."""
    rows = [row for row in record.rows if row.work]
    plot.measured(rows)
    size = coordinates(record.parameters)
    title = f"A step's work on {size} parameters, simulated ranks, one core"
    figure = plot.figure(12.4, 5.2, title)
    left, right = figure.subplots(1, 2)
    collective = [row for row in rows if row.method.collective]
    _panel(left, collective, record, lambda row: row.work.median)
    left.set_title("all work of all ranks, messages with it", fontsize=10, loc="left")
    _panel(right, rows, record, lambda row: row.computing)
    what = "computing alone: packing, hashing, rules, tallies, unpacking"
    right.set_title(what, fontsize=10, loc="left")
    figure.legend(*right.get_legend_handles_labels(), **plot.SMALL, loc="outside right center")
    return figure


def _panel(
    axis: Any, rows: Sequence[Any], record: Any, value: Callable[[Any], float | None]
) -> None:
    colours = dict(zip(record.settings.rules, _COLOURS * 2, strict=False))
    rows = [row for row in rows if value(row)]
    for label in dict.fromkeys(row.label for row in rows):
        mine = [row for row in rows if row.label == label]
        method = mine[0].method
        style, marker = _STYLES.get(method.kind, ("-", "o") if method.groups else ("--", "s"))
        axis.plot(
            [row.ranks for row in mine], [value(row) for row in mine], linestyle=style,
            marker=marker, color=colours.get(method.rule, plot.GREY), linewidth=1.5, markersize=5,
            label=label,
        )  # fmt: skip
    ranks = record.settings.ranks
    low = min(found for row in rows if (found := value(row)))
    for power, label in ((1, "p"), (2, "p²")):
        line = [0.8 * low * (p / ranks[0]) ** power for p in ranks]
        axis.plot(ranks, line, color=plot.LIGHT, linewidth=1, zorder=0)
        if len(ranks) > 1:
            axis.annotate(f"∝ {label}", (ranks[-1], line[-1]), fontsize=8, color="#777777")
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xticks(ranks, [str(p) for p in ranks])
    axis.minorticks_off()
    axis.yaxis.set_major_formatter(lambda value, _: seconds(value).replace(".00", ""))
    axis.set_xlabel("ranks p")
    plot.finish(axis)


SHOWN = Shown(_tables, _notes, _draw)
