"""Tables on a terminal and in Markdown, and those of a study's results."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from mpisign.experiments.file import Grid, Study
from mpisign.experiments.files import machine, now
from mpisign.experiments.plan import Record
from mpisign.experiments.progress import on_terminal
from mpisign.experiments.results import Summary
from mpisign.experiments.tasks import ALSO, metric


@dataclass
class TextTable:
    """Heads and cells, all text; the first ``left`` columns say what a row is of."""

    title: str
    left: int
    heads: Sequence[str]
    rows: list[list[str]] = field(default_factory=list)
    caption: str = ""
    styles: list[str | None] = field(default_factory=list)

    def add(self, *cells: str, style: str | None = None) -> None:
        """Adds a row."""
        self.rows.append([*cells])
        self.styles.append(style)

    def markdown(self) -> str:
        """The table in Markdown, its title in bold and its caption below."""
        title = self.title.replace("\n", " ")
        lines = [f"**{title[0].upper()}{title[1:]}**", ""] if title else []
        heads = [head.replace("\n", " ") or "figure" for head in self.heads]
        lines.append(f"| {' | '.join(heads)} |")
        lines.append("|" + "---|" * self.left + "---:|" * (len(heads) - self.left))
        lines += [f"| {' | '.join(row)} |" for row in self.rows]
        return "\n".join([*lines, *(["", self.caption] if self.caption else [])])

    def rich(self) -> Any:
        """The same for rich's console."""
        from rich import box, table

        out = table.Table(
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
            pad_edge=False,
            title=self.title or None,
            title_justify="left",
            title_style="bold",
            caption=self.caption or None,
            caption_justify="left",
        )
        for i, head in enumerate(self.heads):
            justify: Any = "left" if i < self.left else "right"
            out.add_column(head, justify=justify, no_wrap=i == 0 or "\n" in head)
        for i, row in enumerate(self.rows):
            out.add_row(*row, style=self.styles[i] if self.styles else None)
        return out


def show(parts: Sequence[TextTable | str], width: int) -> None:
    """Prints tables and text, ``width`` columns wide where standard output is no terminal."""
    from rich.console import Console

    watched = on_terminal()
    console = Console(width=None if watched else width, force_terminal=watched, highlight=False)
    for part in parts:
        console.print(part.rich() if isinstance(part, TextTable) else part)


def page(command: str, parts: Sequence[TextTable | str], where: str = "") -> str:
    """A generated results page: the command, date and machine, then tables and text."""
    head = [f"    {command}", where or f"Measured on {now()[:10]}: {machine()}."]
    body = [part.markdown() if isinstance(part, TextTable) else part for part in parts]
    return "\n\n".join([*head, *(text for text in body if text)]) + "\n"


Shown = Callable[[Summary], str]

_AXES = {
    "ranks": "ranks",
    "batch_size": "batch of a rank",
    "dirichlet": "Dirichlet alpha",
    "adversaries": "hostile",
    "attack": "attack",
    "placement": "placement",
}


def tables(study: Study, summaries: Sequence[Summary]) -> list[TextTable]:
    """Of each grid: the metric, the learning rates where they were chosen, the bits."""
    made: list[TextTable] = []
    seen: list[set[str]] = []
    for grid in study.grids:
        own = [s for s in summaries if s.group.grid is grid]
        cells = {c.key for s in own for c in s.group.reported(s.lr or 1.0)}
        if cells in seen:
            continue  # the same cells once more, for another picture
        seen.append(cells)
        for title, part in _parts(grid, own):
            made.append(_table(grid, part, f"{title}: {metric(grid.task).heading}", _metric))
            for name in grid.also:
                heading = f"{title}: {ALSO[name].heading}"
                if name == "recall":
                    made.append(_digits(part, heading))
                else:
                    made.append(_table(grid, part, heading, partial(_also, name=name)))
        if any(len(m.lr) > 1 for m in grid.methods):
            made.append(_table(grid, own, f"{grid.label}: learning rate chosen", _rate))
        if any(s.records for s in own):
            if grid.along in ("round", "bytes"):  # in which methods take other numbers of steps
                title = f"{grid.label}: bits that a rank sent for each coordinate, in all"
                made.append(_table(grid, own, title, _all_bits))
                continue
            title = f"{grid.label}: bits of a rank's message per step and coordinate"
            made.append(_alike(grid, own, title) or _table(grid, own, title, _bits))
    return made


def _parts(grid: Grid, own: list[Summary]) -> list[tuple[str, list[Summary]]]:
    """A table for each attack where placements vary too: else there are too many rows to read."""
    if not {"attack", "placement"} <= {*varying(grid)}:
        return [(grid.label, own)]
    return [
        (f"{grid.label}, {attack}", [s for s in own if s.group.point["attack"] in (attack, None)])
        for attack in grid.axes["attack"]
    ]


def _table(grid: Grid, own: Sequence[Summary], title: str, cell: Shown) -> TextTable:
    axes = varying(grid)
    if len({s.group.point["attack"] for s in own} - {None}) == 1:
        axes = [axis for axis in axes if axis != "attack"]  # the title has it
    labels = [m.label for m in grid.methods]
    rows: dict[str, list[str]] = {}
    for s in own:
        place = [axis_value(axis, s.group.point[axis]) for axis in axes]
        row = rows.setdefault("|".join(place), [*place, *[""] * len(labels)])
        row[len(axes) + labels.index(s.group.method.label)] = cell(s)
    if not axes:  # one point: methods go down, not across
        flat = [[label, cell] for label, cell in zip(labels, *rows.values(), strict=True)]
        return TextTable(title, 1, ["method", ""], flat)
    return TextTable(title, len(axes), [*(_AXES[a] for a in axes), *labels], list(rows.values()))


def _digits(own: Sequence[Summary], title: str) -> TextTable:
    """Methods by digits: of each point that the grid has."""
    rows = []
    for s in own:
        means = [statistics.mean(of) for of in zip(*s.recalls, strict=True)]
        rows.append([s.group.method.label, *(ALSO["recall"].shown(m) for m in means)])
    return TextTable(title, 1, ["method", *map(str, range(10))], [r for r in rows if len(r) > 1])


def _alike(grid: Grid, own: Sequence[Summary], title: str) -> TextTable | None:
    """The bits in one row, if they are the same all over the grid."""
    found = {m.label: {_bits(s) for s in own if s.group.method is m} - {""} for m in grid.methods}
    if not varying(grid) or any(len(values) != 1 for values in found.values()):
        return None
    return TextTable(title, 0, list(found), [[value for (value,) in found.values()]])


def varying(grid: Grid) -> list[str]:
    """The axes along which the grid has more than one value."""
    return [axis for axis, values in grid.axes.items() if len(values) > 1]


def axis_value(axis: str, value: object) -> str:
    """One value of an axis."""
    if axis == "dirichlet":
        return "shuffled" if value is None else f"{value:g}"
    return "-" if value is None else str(value)


def _metric(s: Summary) -> str:
    if not s.records:
        return "not run"
    text = metric(s.group.grid.task).shown
    parts = []
    if s.mean is not None:
        spread = "" if s.spread is None else f" ± {text(s.spread, like=s.mean)}"
        parts.append(f"{text(s.mean)}{spread}")
    if s.diverged:
        parts.append(f"{s.diverged} of {len(s.seeds)} diverged")
    if len(s.seeds) < len(s.group.grid.seeds):
        parts.append(f"{len(s.seeds)} of {len(s.group.grid.seeds)} seeds")
    return ", ".join(parts)


def _also(s: Summary, name: str) -> str:
    values, text = s.also(name), ALSO[name].shown
    if not values:
        return ""
    spread = f" ± {text(statistics.stdev(values))}" if len(values) > 1 else ""
    return f"{text(statistics.mean(values))}{spread}"


def _rate(s: Summary) -> str:
    if s.lr is None:
        return "not run"
    edge = s.group.edge(s.lr)
    return f"{s.lr:g}{f' ({edge})' if edge else ''}"


def _bits(s: Summary) -> str:
    return "" if s.code_bits is None else f"{s.code_bits:.3g}"


def _all_bits(s: Summary) -> str:
    return "" if s.all_bits is None else f"{s.all_bits:.3g}"


def caption(study: Study, summaries: Sequence[Summary]) -> str:
    """What the figures are of."""
    lines = []
    seeds = sorted({seed for s in summaries for seed in s.seeds})
    if seeds:
        listed = ", ".join(map(str, seeds))
        lines.append(f"Mean ± standard deviation over seeds {listed}.")
    if any(len(m.lr) > 1 for g in study.grids for m in g.methods):
        tuned = ", ".join(str(s) for s in sorted({s for g in study.grids for s in g.tune_seeds}))
        lines.append(
            f"Learning rates were chosen with seed {tuned}, by data that is neither trained on nor "
            "reported; lowest, highest: at the end of what was tried."
        )
    records = [r for s in summaries for r in s.records]
    kinds = sorted({r["ranks"] for r in records})
    if records:
        lines.append(f"By {' and '.join(kinds)} ranks; {_one(records, 'version')}.")
    return " ".join(lines)


def where(summaries: Sequence[Summary]) -> str:
    """The dates of the cells, and the machine that they ran on."""
    records = [r for s in summaries for r in s.records]
    days = sorted({r["time"][:10] for r in records})
    span = days[0] if len(days) < 2 else f"{days[0]} to {days[-1]}"
    if all("machine" in r for r in records):
        return f"Measured on {span}: {_one(records, 'machine')}."
    return f"Measured on {span}; the results do not name the machine of each cell."


def _one(records: Sequence[Record], key: str) -> str:
    """What all records say, or that they differ."""
    said = {r[key] for r in records}
    return said.pop() if len(said) == 1 else f"the results name each cell's {key}"
