"""What was measured, to standard output and to files."""

from __future__ import annotations

import os
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from mpisign.bench import files
from mpisign.bench.detox import table
from mpisign.bench.table import text
from mpisign.bench.wire.report import check_files
from mpisign.bench.wire.table import WIDTH
from mpisign.training.progress import on_terminal

if TYPE_CHECKING:
    from mpisign.bench.detox.run import Record, Settings

MARK = "<!-- mpisign bench detox -->"


def check(settings: Settings) -> None:
    """Raises BenchError for files that cannot be written, before anything is measured."""
    check_files(settings.json, settings.plot, settings.markdown, MARK)


def report(record: Record) -> None:
    """Tables first, then the files; BenchError if one cannot be written."""
    colour = on_terminal() and "NO_COLOR" not in os.environ
    for part in table.tables(record):
        print(f"{text(part, colour)}\n")
    for line in table.footnotes(record):
        print(textwrap.fill(line, WIDTH))
    sys.stdout.flush()
    tables = table.markdown(record)

    def draw(path: Path) -> None:
        from mpisign.bench.detox.plot import write  # matplotlib: only if asked for

        write(path, record)

    s = record.settings
    files.write_all(
        [
            ("--json", s.json, record.write),
            ("--markdown", s.markdown, lambda p: files.write_between_marks(p, MARK, tables)),
            ("--plot", s.plot, draw),
        ]
    )
