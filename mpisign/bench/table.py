"""What was measured, for people: text for a terminal, Markdown for docs/measurements.md."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mpisign.bench.record import Record
from mpisign.bench.results import Plain, Row, SmallCall, Timing

_FASTER, _ERROR = "faster than", "not measured"
_HEADS = (
    "kernel", "with", "n", "time", "+-", "moved", "GB/s", "of limit", "goal", "", _FASTER, _ERROR,
)  # fmt: skip
_CALL_HEADS = ("call", "time", "+-", "goal", "", _FASTER)
_LEFT = {"kernel", "with", "call", "way", "what", "", _FASTER, _ERROR}
_QUARTILES_FROM = 3  # runs
_GREEN, _RED, _BOLD, _OFF = "\x1b[32m", "\x1b[31m", "\x1b[1m", "\x1b[0m"


@dataclass(frozen=True)
class Table:
    """A title, heads and cells, all text."""

    title: str
    heads: Sequence[str]
    rows: list[Sequence[str]]

    def filled(self) -> Table:
        """Without columns in which nothing stands."""
        keep = [i for i in range(len(self.heads)) if any(row[i] for row in self.rows)]
        rows: list[Sequence[str]] = [[row[i] for i in keep] for row in self.rows]
        return Table(self.title, [self.heads[i] for i in keep], rows)


def coordinates(size: int) -> str:
    """A number of coordinates as people and --sizes write it: 25.6M."""
    for unit, name in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if size >= unit:
            return f"{size / unit:.12g}{name}" if size * 1000 % unit == 0 else f"{size:,}"
    return str(size)


def tables(record: Record) -> Iterator[Table]:
    """One for each size and number of threads, one for small calls."""
    groups: dict[tuple[int, int], list[Row]] = {}
    for row in record.rows:
        groups.setdefault((row.size, row.threads), []).append(row)
    for (size, threads), rows in groups.items():
        title = f"{coordinates(size)} coordinates"
        if record.device["kind"] == "cpu":
            title += f", {threads} thread{'s' if threads > 1 else ''}"
        heads = list(_HEADS)
        scaled = any(row.scaling for row in rows)
        if scaled:
            heads[8:10] = ["times one", "memory", ""]
        yield Table(title, heads, [_cells(row, scaled) for row in rows]).filled()
    if record.calls:
        title = f"calls of {record.calls[0].size:,} coordinates from Python"
        yield Table(title, _CALL_HEADS, [_call_cells(call) for call in record.calls]).filled()


def _cells(row: Row, scaled: bool) -> list[str]:
    first = [row.kernel, row.variant, "" if row.n is None else str(row.n)]
    if row.time is None:
        return [*first, *[""] * (len(_HEADS) - 4 + scaled), row.error or ""]
    if scaled:
        told = [f"{x:.2f}" if x else "" for x in (row.scaling, row.limit_scaling)]
        told.append(_verdict(row.scaling_met))
    else:
        told = ["" if row.goal is None else f"{row.goal:.2f}", _verdict(row.met)]
    return [
        *first,
        seconds(row.time.median),
        _spread(row.time),
        amount(row.moved),
        f"{(row.bytes_per_second or 0) / 1e9:.1f}",
        "" if row.ratio is None else f"{row.ratio:.2f} {row.limit}",
        *told,
        _beside(row.plain),
        "",
    ]


def _call_cells(call: SmallCall) -> list[str]:
    goal = "" if call.goal is None else seconds(call.goal)
    verdict = _verdict(call.met)
    return [
        call.name, seconds(call.time.median), _spread(call.time), goal, verdict, _beside(call.plain)
    ]  # fmt: skip


def _spread(timing: Timing) -> str:
    return "" if timing.runs < _QUARTILES_FROM else f"{timing.spread:.0%}"


def _verdict(met: bool | None) -> str:
    return "" if met is None else "met" if met else "missed"


def _beside(plain: Sequence[Plain]) -> str:
    return ", ".join(f"{_times(p.times_slower)} {p.name}" for p in plain)


def _times(value: float) -> str:
    return f"{value:.0f}x" if value >= 10 else f"{value:#.2g}x"


def seconds(value: float) -> str:
    """Three digits and a unit."""
    for unit, name in ((1, "s"), (1e-3, "ms"), (1e-6, "us")):
        if value >= unit:
            return f"{value / unit:#.3g} {name}".replace(". ", " ")
    return f"{value / 1e-9:.0f} ns"


def amount(nbytes: int) -> str:
    """Three digits and a unit."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if nbytes >= unit:
            return f"{nbytes / unit:#.3g} {name}".replace(". ", " ")
    return f"{nbytes} B"


def limits(record: Record) -> list[str]:
    """One line for each size and number of threads: the limits as they were measured."""
    found: dict[tuple[int, int], dict[str, list[tuple[float, str]]]] = {}
    for row in record.rows:
        if row.limit_bytes_per_second and row.limit_how:
            of_size = found.setdefault((row.size, row.threads), {}).setdefault(row.limit, [])
            of_size.append((row.limit_bytes_per_second, row.limit_how))
    lines = []
    for (size, threads), kinds in found.items():
        told = []
        for kind in ("read", "write", "copy"):
            if kind in kinds:
                speeds = sorted(kinds[kind])
                low, high = speeds[0][0] / 1e9, speeds[-1][0] / 1e9
                middle, how = speeds[len(speeds) // 2]
                told.append(f"{kind} {middle / 1e9:.1f} ({low:.1f} to {high:.1f}, {how})")
        more = f", {threads} threads" if threads > 1 else ""
        lines.append(f"Limits at {coordinates(size)}{more}, GB/s: {', '.join(told)}.")
    return lines


def footnotes(record: Record) -> list[str]:
    """What to know beside the tables, one paragraph each."""
    told = (*limits(record), _columns(record), *record.notes, record.busy)
    return [line for line in told if line]


def _columns(record: Record) -> str:
    """What the columns mean, of those that are there."""
    times = [row.time for row in record.rows if row.time is not None]
    times += [call.time for call in record.calls]
    told = []
    if times:
        runs = max(timing.runs for timing in times)
        half = ", +- half the quartiles' distance" if runs >= _QUARTILES_FROM else ""
        told.append(f"time: median of {runs} run{'s' if runs > 1 else ''}{half}")
    if any(row.time for row in record.rows):
        told.append("moved: bytes that the operation must read and write")
    if any(row.ratio is not None for row in record.rows):
        told.append(
            "of limit: its speed by that of plain reading, writing or copying as many bytes, in "
            "turns with it"
        )
    if any(row.plain for row in record.rows) or any(call.plain for call in record.calls):
        told.append(
            "faster than: how many times longer the plain way takes; below 1 it is the faster one"
        )
    line = "; ".join(told)
    return f"{line[0].upper()}{line[1:]}." if line else ""


def text(table: Table, colour: bool) -> str:
    """Aligned columns under a title."""
    widths = [
        max(len(row[i]) for row in (table.heads, *table.rows)) for i in range(len(table.heads))
    ]

    def line(cells: Sequence[str], paint: bool) -> str:
        padded = []
        for head, cell, width in zip(table.heads, cells, widths, strict=True):
            out = cell.ljust(width) if head in _LEFT else cell.rjust(width)
            if paint and cell in ("met", "missed"):
                out = f"{_GREEN if cell == 'met' else _RED}{out}{_OFF}"
            padded.append(out)
        return "  ".join(padded).rstrip()

    title = f"{_BOLD}{table.title}{_OFF}" if colour else table.title
    rule = "-" * sum(widths, 2 * (len(widths) - 1))
    return "\n".join(
        [title, "", line(table.heads, False), rule, *(line(row, colour) for row in table.rows)]
    )


def markdown(record: Record) -> str:
    """The tables as docs/measurements.md has them."""
    parts = [f"    {record.command}"]
    parts += [record.machine, *footnotes(record)]
    for table in tables(record):
        parts.append(of_markdown(table))
    return "\n\n".join(parts) + "\n"


def of_markdown(table: Table) -> str:
    """One table under a heading."""
    lines = [f"### {table.title[0].upper()}{table.title[1:]}", ""]
    lines.append("| " + " | ".join(h or "met?" for h in table.heads) + " |")
    lines.append("|" + "|".join("---" if h in _LEFT else "---:" for h in table.heads) + "|")
    lines += ["| " + " | ".join(cells) + " |" for cells in table.rows]
    return "\n".join(lines)
