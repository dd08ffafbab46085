"""What was measured, for people: a table for each number of ranks, and one of growth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from mpisign.bench.detox.results import Row
from mpisign.bench.table import Table, amount, coordinates, of_markdown, seconds

if TYPE_CHECKING:
    from mpisign.bench.detox.run import Record

_HEADS = ("way", "f", "work", "+-", "a rank", "computing", "clock", "sent", "of plain")
_LINEAR = 1.25  # an exponent that is called nearly linear, at most
_NOTES = (
    "work: processor time of a step, all ranks together, median of {repeat} turns of "
    "{steps} steps; +- is half the quartiles' distance; a rank: work / ranks; computing: of the "
    "work packing, hashing, rules, tallies, unpacking, without messages and Python around them, by "
    "the clock, least of the turns; "
    "clock: what a step took here; sent: bytes by a rank; of plain: work / that of the same rule "
    "without groups; f: hostile rows (ranks, groups) that the rule is made for, as many as Bulyan "
    "takes. one place: the rule on the same rows at once, as a parameter server has them, ByzFL's "
    "beside ours (torch tensors, one thread).",
    "What this shows and what not: ranks are threads of one process that compute one after the "
    "other, and messages are copies in memory. So work is what all ranks do together; divided by "
    "the ranks it is the time of a step where every rank has a core of its own and the wire is "
    "free. What a wire needs is in the bytes sent.",
)


def tables(record: Record) -> Iterator[Table]:
    """One for each number of ranks, and how each way grows."""
    for ranks in record.settings.ranks:
        rows = [row for row in record.rows if row.ranks == ranks]
        r = record.settings.redundancy
        title = f"{ranks} ranks, {ranks // r} groups; {coordinates(record.parameters)} parameters"
        yield Table(title, _HEADS, [_cells(row) for row in rows if row.work]).filled()
    if record.growths:
        heads = ("way", "work", "a rank", "computing", "it is nearly linear")
        cells: list[Sequence[str]] = [
            [
                g.way,
                f"p^{g.work:.2f}",
                f"p^{g.work - 1:.2f}",
                "" if g.computing is None else f"p^{g.computing:.2f}",
                "" if g.computing is None else "yes" if g.computing <= _LINEAR else "no",
            ]
            for g in record.growths
        ]
        first, last = min(record.settings.ranks), max(record.settings.ranks)
        yield Table(f"growth with the ranks p, {first} to {last}", heads, cells)


def _cells(row: Row) -> list[str]:
    f = "" if row.way.kind == "vote" else str(row.way.f)
    assert row.work is not None and row.wall is not None
    return [
        row.way.label,
        f,
        seconds(row.work.median),
        f"{row.work.spread:.0%}" if row.work.runs > 2 else "",
        "" if row.way.kind in ("here", "byzfl") else seconds(row.of_rank or 0.0),
        "" if row.computing is None else seconds(row.computing),
        seconds(row.wall.median),
        amount(round(row.sent)) if row.sent else "",
        "" if row.of_plain is None else f"{row.of_plain:.2f}",
    ]


def footnotes(record: Record) -> list[str]:
    """What to know beside the tables, one paragraph each."""
    s = record.settings
    counts = {"repeat": s.repeat, "steps": s.steps}
    linear = f"Nearly linear: an exponent of at most {_LINEAR:g}, fitted by least squares."
    missing = {f"{row.way.label}: not measured: {row.error}." for row in record.rows if row.error}
    return [
        f"On {record.host}.",
        *(note.format(**counts) for note in _NOTES),
        linear,
        *sorted(missing),
    ]


def markdown(record: Record) -> str:
    """As docs/measurements.md has it."""
    parts = [f"    {record.command}", *(of_markdown(t) for t in tables(record))]
    return "\n\n".join([*parts, *footnotes(record)]) + "\n"
