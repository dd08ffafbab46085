"""Tables of results for a terminal and for Markdown, and how their figures are written."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mpisign.bench.measure import Timing
from mpisign.bench.record import Goal

WIDTH = 100
QUARTILES_FROM = 3  # runs from which a spread is shown
_LEFT = {"with", "", "faster than", "note"}  # heads of columns of text, beside the first column
_COLOURS = {"met": "green", "missed": "red"}


@dataclass(frozen=True)
class Table:
    """Heads and cells as text. ``missing``: (first cell, why there are no others)."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    missing: Sequence[tuple[str, str]] = ()

    def filled(self) -> Table:
        """Drops the columns without any text, but for the first."""
        keep = [i for i in range(len(self.heads)) if not i or any(row[i] for row in self.rows)]
        rows = [[row[i] for i in keep] for row in self.rows]
        return replace(self, heads=[self.heads[i] for i in keep], rows=rows)

    def text(self, colour: bool) -> str:
        """Aligned columns under the title; Markdown where ``rich`` is not installed."""
        try:
            from rich import box, console, table, text
        except ImportError:
            return self.markdown()
        first = max(len(cell) for cell, *_ in (self.heads, *self.rows, *self.missing))
        lines = box.Box("    \n    \n----\n" + 5 * "    \n", ascii=True)
        bare: dict[str, Any] = {"header_style": "", "show_edge": False, "pad_edge": False}
        drawn = table.Table(box=lines, padding=(0, 1, 0, 0), **bare)
        for i, head in enumerate(self.heads):
            side: Any = "left" if not i or head in _LEFT else "right"
            width = None if i else first
            drawn.add_column(text.Text(head), justify=side, no_wrap=True, min_width=width)
        for row in self.rows:
            drawn.add_row(*(text.Text(cell, _COLOURS.get(cell, "")) for cell in row))
        system: Any = "standard" if colour else None
        out = console.Console(width=1000, force_terminal=colour, color_system=system)
        with out.capture() as capture:
            out.print(text.Text(self.title, "bold"), text.Text(), drawn, sep="\n")
        shown = [line.rstrip() for line in capture.get().splitlines()]
        indent = " " * (first + 2)
        for name, why in self.missing:
            begin = name.ljust(len(indent))
            shown.append(textwrap.fill(why, WIDTH, initial_indent=begin, subsequent_indent=indent))
        return "\n".join(shown)

    def markdown(self) -> str:
        """The table under a heading."""
        lines = [
            f"### {self.title[0].upper()}{self.title[1:]}",
            "",
            _line(h or "met?" for h in self.heads),
        ]
        aligned = ("---" if not i or h in _LEFT else "---:" for i, h in enumerate(self.heads))
        lines.append(f"|{'|'.join(aligned)}|")
        lines += [_line(cells) for cells in self.rows]
        return "\n".join(lines + [f"\n{name}: {why}" for name, why in self.missing])


def _line(cells: Iterator[str] | Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def grouped(rows: Iterable[Any], *fields: str) -> dict[Any, list[Any]]:
    """``rows`` by the values of ``fields``, in order."""
    groups: dict[Any, list[Any]] = {}
    for row in rows:
        groups.setdefault(tuple(getattr(row, field) for field in fields), []).append(row)
    return groups


def of_goals(goals: Sequence[Goal]) -> Iterator[Table]:
    """A table of the goals that apply to a run, if there are any."""
    rows = [(g.what, coordinates(g.size), g.wanted, f"{g.got:#.3g}", verdict(g.met)) for g in goals]
    if rows:
        yield Table("goals", ("goal", "coordinates", "wanted", "got", ""), rows)


def goals_met(verdicts: Sequence[bool | None]) -> str:
    """How many goals are met, of those that apply."""
    known = [met for met in verdicts if met is not None]
    return f"{sum(known)} of {len(known)} goals met." if known else ""


def verdict(met: bool | None) -> str:
    """For a cell; "" where no goal applies."""
    return "" if met is None else "met" if met else "missed"


def spread(timing: Timing | None, digits: int = 0) -> str:
    """Half the distance between the quartiles in percent, if there are enough runs."""
    few = timing is None or timing.runs < QUARTILES_FROM
    return "" if few else f"{timing.spread:.{digits}%}"  # type: ignore[union-attr]


def times(value: float | None) -> str:
    """A factor with two digits: 0.51x, 17x."""
    return "" if value is None else f"{value:.0f}x" if value >= 10 else f"{value:#.2g}x"


def coordinates(size: int) -> str:
    """A number of coordinates as --sizes reads it: 25.6M."""
    for unit, name in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if size >= unit:
            return f"{size / unit:.12g}{name}" if size * 1000 % unit == 0 else f"{size:,}"
    return str(size)


def seconds(value: float | None) -> str:
    """Three digits and a unit."""
    if value is None:
        return ""
    return _scaled(value, ((1, "s"), (1e-3, "ms"), (1e-6, "us"))) or f"{value / 1e-9:.0f} ns"


def amount(nbytes: float | None) -> str:
    """Bytes with three digits and a unit; negative ones too."""
    if nbytes is None:
        return ""
    sign, whole = "-" if nbytes < 0 else "", round(abs(nbytes))
    return sign + (
        _scaled(whole, ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB")))
        or f"{whole} B"
    )


def _scaled(value: float, units: Sequence[tuple[float, str]]) -> str:
    for unit, name in units:
        if value >= unit:
            return f"{value / unit:#.3g} {name}".replace(". ", " ")
    return ""
