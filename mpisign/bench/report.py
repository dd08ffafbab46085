"""Results to standard output and to files, the same for every bench."""

from __future__ import annotations

import datetime
import os
import sys
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mpisign.bench.record import Record, machine
from mpisign.bench.table import WIDTH, Table
from mpisign.experiments import files
from mpisign.experiments.errors import SettingsError
from mpisign.experiments.progress import on_terminal


@dataclass(frozen=True)
class Shown:
    """How a bench shows its record.

    ``notes``: paragraphs below the tables. ``draw``: returns a matplotlib figure. ``files``: more
    files, by the names of their settings; each function writes its file to a path.
    """

    tables: Callable[[Any], Iterable[Table]]
    notes: Callable[[Any], Iterable[str]]
    draw: Callable[[Any], Any] | None = None
    files: dict[str, Callable[[Any, Path], None]] | None = None


def check(record: Record, shown: Shown) -> None:
    """Raises SettingsError for files that cannot be written, before anything is measured."""
    settings = record.settings
    for name in (*(shown.files or ()), "json", "plot", "markdown"):
        files.check_path(f"--{name}", getattr(settings, name, None))
    if getattr(settings, "plot", None) is not None:
        _check_plot(settings.plot)
    if settings.markdown is not None:
        files.around(settings.markdown, record.mark)


def report(record: Record, shown: Shown, complete: bool = True) -> None:
    """Prints the tables, then writes the files; SettingsError if one of them cannot be written."""
    colour = on_terminal() and "NO_COLOR" not in os.environ
    tables = list(shown.tables(record))
    notes = [note for note in (*shown.notes(record), *record.notes) if note]
    for table in tables:
        print(f"{table.text(colour)}\n")
    for note in filter(None, (record.where, f"On {machine()}.", *notes)):
        print(textwrap.fill(note, WIDTH))
    sys.stdout.flush()
    s = record.settings
    parts: list[tuple[str, Path | None, Callable[[Path], Any]]] = [("--json", s.json, record.write)]
    if complete:
        page = _page(record, tables, notes)
        for name, save in (shown.files or {}).items():
            parts.append((f"--{name}", getattr(s, name), partial(save, record)))
        parts.append(
            ("--markdown", s.markdown, lambda p: files.write_between_marks(p, record.mark, page))
        )
        if draw := shown.draw:
            parts.append(("--plot", s.plot, lambda p: draw(record).savefig(p)))
    failed = []
    for option, path, write in parts:
        try:
            if path is not None:
                write(path)
        except OSError as error:  # the others may still be written
            failed.append(f"{option} {path}: {error.strerror or error}")
        except SettingsError as error:
            failed.append(str(error))
    if failed:
        raise SettingsError("; ".join(failed))


def run(record: Record, shown: Shown, measure: Callable[[], None]) -> int:
    """Measures and reports in this process; 130 if it was interrupted. Raises SettingsError."""
    try:
        measure()
    except KeyboardInterrupt:
        record.notes.append("Interrupted: not all was measured.")
        report(record, shown, complete=False)
        print(f"\nmpisign: interrupted after {len(record.rows)} rows", file=sys.stderr)
        return 130
    report(record, shown)
    return 0


def _page(record: Record, tables: list[Table], notes: list[str]) -> str:
    """What stands in docs/results: command, date and machine, tables, notes."""
    time = datetime.datetime.now(datetime.UTC)
    measured = f"Measured on {time:%Y-%m-%d %H:%M} UTC on {machine()}."
    parts = [f"    {record.command}", measured, record.where]
    parts += [*(table.markdown() for table in tables), *notes]
    return "\n\n".join(filter(None, parts)) + "\n"


def _check_plot(path: Path) -> None:
    """Raises SettingsError if matplotlib is missing or cannot write such a file."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SettingsError(f"--plot needs matplotlib ({error}): pip install matplotlib") from error
    formats = sorted(Figure().canvas.get_supported_filetypes())
    if path.suffix[1:].lower() not in formats:
        raise SettingsError(f"--plot {path}: the name must end in one of .{', .'.join(formats)}")
