"""What was measured, for people: text of at most 100 columns, and Markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from mpisign.bench.results import Timing
from mpisign.bench.table import amount, coordinates, seconds
from mpisign.bench.wire import goals
from mpisign.bench.wire.nodes import rate
from mpisign.bench.wire.record import Record
from mpisign.bench.wire.results import Row

WIDTH = 100
_HEADS = (
    "way", "time", "+-", "algbw", "busbw", "sent", "on link", "limit", "x limit", "x fp32", "x fp16"
)  # fmt: skip
_BOLD, _OFF = "\x1b[1m", "\x1b[0m"
_QUARTILES_FROM = 3  # runs


def _groups(record: Record) -> Iterator[tuple[str, list[Row]]]:
    """A title and the rows, for each size and wire."""
    found: dict[tuple[int, str], list[Row]] = {}
    for row in record.rows:
        found.setdefault((row.size, row.via), []).append(row)
    for (size, via), rows in found.items():
        tensors = "" if rows[0].tensors == 1 else f" in {rows[0].tensors} tensors"
        yield f"{coordinates(size)} coordinates{tensors}, {record.library(via)}", rows


def _cells(row: Row) -> list[str]:
    t = row.time
    assert t is not None and row.sent is not None
    counted = None
    if row.counted_sent is not None and row.counted_received is not None:
        counted = (row.counted_sent + row.counted_received) / 2
    return [
        row.way,
        seconds(t.median),
        _spread(t),
        _megabytes(row.algbw),
        _megabytes(row.busbw),
        amount(round(row.sent)),
        "" if counted is None else amount(round(counted)),
        "" if row.limit is None else seconds(row.limit),
        _times(row.ratio),
        _times(row.times_faster_than_fp32),
        _times(row.times_faster_than_fp16),
    ]


def _spread(timing: Timing) -> str:
    return "" if timing.runs < _QUARTILES_FROM else f"{timing.spread:.0%}"


def _megabytes(value: float | None) -> str:
    mega = (value or 0.0) / 1e6
    return "" if value is None else f"{mega:.0f}" if mega >= 100 else f"{mega:#.3g}"


def _times(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"


def _filled(rows: list[Row]) -> tuple[list[str], list[tuple[Row, list[str]]]]:
    """Heads and cells without columns in which nothing stands; no cells: the row has an error."""
    cells = [(row, _cells(row) if row.time else []) for row in rows]
    keep = [i for i in range(len(_HEADS)) if i == 0 or any(c and c[i] for _, c in cells)]
    return [_HEADS[i] for i in keep], [(row, [c[i] for i in keep] if c else []) for row, c in cells]


def text(record: Record, colour: bool) -> Iterator[str]:
    """The tables, one after another."""
    for title, rows in _groups(record):
        heads, cells = _filled(rows)
        ways = max(len(row.way) for row in rows)
        lined = [heads, *(c for _, c in cells if c)]
        widths = [max(len(line[i]) for line in lined) for i in range(len(heads))]
        widths[0] = max(widths[0], ways)

        def line(cells: list[str], widths: list[int] = widths) -> str:
            padded = [cells[0].ljust(widths[0])]
            padded += [c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True)]
            return "  ".join(padded).rstrip()

        told = [f"{_BOLD}{title}{_OFF}" if colour else title, "", line(heads)]
        told.append("-" * sum(widths, 2 * (len(widths) - 1)))
        for row, c in cells:
            told.append(line(c) if c else _not_run(row, widths[0]))
        yield "\n".join(told)
    if record.goals:
        yield _goals(record)


def _goals(record: Record) -> str:
    rows = goals.told(record.goals)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            [r[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(r[1:], widths[1:], strict=True))]
        ).rstrip()
        for r in rows
    ]
    return "\n".join([lines[0], "-" * sum(widths, 2 * (len(widths) - 1)), *lines[1:]])


def _not_run(row: Row, width: int) -> str:
    return textwrap.fill(
        f"not run: {row.error}",
        WIDTH,
        initial_indent=row.way.ljust(width + 2),
        subsequent_indent=" " * (width + 2),
    )


def footnotes(record: Record) -> list[str]:
    """What to know beside the tables, one paragraph each."""
    told = [f"Ranks: {record.ranks}."]
    for via in dict.fromkeys(link.via for link in record.links):
        links = [link for link in record.links if link.via == via]
        speeds = sorted(link.bandwidth for link in links)
        between = rate(speeds[0]) + (f" to {rate(speeds[-1])}" if len(speeds) > 1 else "")
        told.append(
            f"{links[0].library}: {seconds(links[0].latency)} a message of 8 bytes; {between} into "
            f"each {'node' if record.nodes.count > 1 else 'rank'} while all send."
        )
    measured = [row for row in record.rows if row.time is not None]
    if measured:
        told.append(_columns(record, measured))
    told += dict.fromkeys(row.notes for row in measured if row.notes)
    return told + record.notes


def _columns(record: Record, rows: list[Row]) -> str:
    """What the columns mean, of those that are there."""
    runs = max(row.time.runs for row in rows if row.time)
    told = [f"Time: median of {runs} turn{'s' if runs > 1 else ''} of the slowest rank"]
    if runs >= _QUARTILES_FROM:
        told[0] += ", +- half the quartiles' distance"
    told.append(
        "algbw, busbw in MB/s: 4 bytes a coordinate / time, and bytes that a rank receives / time "
        "(of fp32 allreduce: algbw x 2 (p - 1) / p)"
    )
    told.append("sent: bytes by a rank")
    if any(row.counted_sent is not None for row in rows):
        told.append("on link: counted at each node's interface, each way")
    if any(row.limit for row in rows):
        how = "set by netlab" if record.nodes.rate else "measured in this run"
        told.append(f"limit: the way's bytes at the link's rate, {how}; x limit: time / limit")
    if any(row.times_faster_than_fp32 or row.times_faster_than_fp16 for row in rows):
        told.append("x fp32, x fp16: times faster than those allreduces over the same wire")
    if any(row.tensors > 1 for row in rows):
        told.append("votes but async take all tensors as one bucket, in one piece of memory")
    return "; ".join(told) + "."


def markdown(record: Record) -> str:
    """The tables as docs/measurements.md has them."""
    parts = [f"    {record.command}", *footnotes(record)]
    for title, rows in _groups(record):
        heads, cells = _filled(rows)
        lines = [f"### {title[0].upper()}{title[1:]}", "", "| " + " | ".join(heads) + " |"]
        lines.append("|---" + "|---:" * (len(heads) - 1) + "|")
        for row, c in cells:
            c = c or [row.way, *[""] * (len(heads) - 1)]
            lines.append("| " + " | ".join(c) + " |")
        lines += [f"\n{row.way}: not run: {row.error}" for row, c in cells if not c]
        parts.append("\n".join(lines))
    if record.goals:
        heads, *goals_ = goals.told(record.goals)
        lines = ["| " + " | ".join([*heads[:-1], "met?"]) + " |", "|---" + "|---:" * 3 + "|---|"]
        parts.append("\n".join([*lines, *("| " + " | ".join(g) + " |" for g in goals_)]))
    return "\n\n".join(parts) + "\n"
