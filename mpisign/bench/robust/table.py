"""What was measured, for people: text for a terminal, Markdown for docs/measurements.md."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from mpisign.bench.robust import peer
from mpisign.bench.robust.results import AT_LIMIT, TIMES, Row
from mpisign.bench.table import Table, coordinates, of_markdown, seconds

if TYPE_CHECKING:
    from mpisign.bench.robust.run import Record

_HEADS = (
    "rule",
    "time",
    "+-",
    "of limit",
    "ByzFL",
    "+-",
    "times",
    "goal",
    "",
    "differs by",
    "note",
)
_BUSY = 0.1


def tables(record: Record) -> Iterator[Table]:
    """One for each framework."""
    s = record.settings
    for framework in s.frameworks:
        rows = [row for row in record.rows if row.framework == framework]
        threads = f"{s.threads} thread{'s' if s.threads > 1 else ''}"
        title = (
            f"{framework}, {s.rows} rows of {coordinates(s.size)} {s.dtype}, f = {s.f}, {threads}"
        )
        if rows:
            yield Table(title, _HEADS, [_cells(row) for row in rows]).filled()


def _cells(row: Row) -> list[str]:
    times = row.times
    return [
        row.rule,
        seconds(row.time.median),
        f"{row.time.spread:.0%}",
        f"{row.of_limit:.2f}",
        seconds(row.theirs.median) if row.theirs else "",
        f"{row.theirs.spread:.0%}" if row.theirs else "",
        "" if times is None else f"{times:.0f}x" if times >= 10 else f"{times:#.2g}x",
        "" if row.met is None else f"{TIMES:g}x" if row.of_limit < AT_LIMIT else "limit",
        "" if row.met is None else "met" if row.met else "missed",
        "" if row.differs is None else f"{row.differs:.0e}",
        row.note,
    ]


def footnotes(record: Record) -> list[str]:
    """What to know beside the tables, one paragraph each."""
    s = record.settings
    told = [
        f"On {record.host}.",
        f"time: median of {s.runs} turns, +- half the quartiles' distance; of limit: what plain "
        "loads take to read the rows once, in turns with it, by the time; times: how many times "
        f"longer ByzFL takes; goal: {TIMES:g} times, or the memory's limit: {AT_LIMIT:g} of the "
        "speed of plain loads; differs by: the largest difference of the results, by the largest "
        "magnitude (empty: drawn at random otherwise). Calls take turns in copies of the rows, "
        "which so come from memory (below 1 MiB from the caches).",
    ]
    if record.peer is None:
        told.append(f"ByzFL is not installed: {peer.HINT}.")
    else:
        told.append(f"ByzFL {record.peer}.")
    limits = [row.limit for row in record.rows]
    wide = sum(limit.spread > _BUSY for limit in limits)
    if wide and wide * 5 >= len(limits):
        told.append(
            f"THE MACHINE WAS BUSY: {wide} of {len(limits)} measurements of the limit spread by "
            f"more than {_BUSY:.0%}. Times mean little in this run, ratios somewhat more."
        )
    return told


def markdown(record: Record) -> str:
    """As docs/measurements.md has it."""
    parts = [f"    {record.command}", *(of_markdown(t) for t in tables(record))]
    return "\n\n".join([*parts, *footnotes(record)]) + "\n"
