"""A table, on a terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mpisign.experiments.errors import missing
from mpisign.experiments.files import machine, now
from mpisign.experiments.progress import on_terminal


@dataclass
class Table:
    """Heads and cells, all text; the first ``left`` columns say what a row is of.

    A head may have two lines. ``styles``: rich's, of each row.
    """

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


def check_rich() -> None:
    """Raises SettingsError if rich is missing."""
    try:
        import rich  # noqa: F401
    except ImportError as error:
        raise missing("rich", error) from error


def show(parts: Sequence[Table | str], width: int) -> None:
    """Prints tables and text, ``width`` columns wide where standard output is no terminal."""
    from rich.console import Console

    watched = on_terminal()
    console = Console(width=None if watched else width, force_terminal=watched, highlight=False)
    for part in parts:
        console.print(part.rich() if isinstance(part, Table) else part)


def page(command: str, parts: Sequence[Table | str], where: str = "") -> str:
    """A generated results page: the command, date and machine, then tables and text.

    ``where``: what to say in place of this machine and today.
    """
    head = [f"    {command}", where or f"Measured on {now()[:10]}: {machine()}."]
    body = [part.markdown() if isinstance(part, Table) else part for part in parts]
    return "\n\n".join([*head, *(text for text in body if text)]) + "\n"
