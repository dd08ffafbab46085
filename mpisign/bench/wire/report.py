"""What was measured, to standard output and to files."""

from __future__ import annotations

import os
import sys
import textwrap
from pathlib import Path
from typing import Protocol

from mpisign.bench import files
from mpisign.bench.wire import table
from mpisign.bench.wire.record import Record
from mpisign.training.progress import on_terminal

MARK = "<!-- mpisign bench collectives -->"


class Paths(Protocol):
    """Where results go, each if at all."""

    @property
    def cost(self) -> Path | None: ...
    @property
    def json(self) -> Path | None: ...
    @property
    def plot(self) -> Path | None: ...
    @property
    def markdown(self) -> Path | None: ...


def check(paths: Paths) -> None:
    """Raises BenchError for files that cannot be written, before anything is measured."""
    files.check_path("--cost", paths.cost)
    check_files(paths.json, paths.plot, paths.markdown, MARK)


def check_files(json: Path | None, plot: Path | None, markdown: Path | None, mark: str) -> None:
    """Those of every bench command; ``mark``: the lines that its tables stand between."""
    for option, path in (("json", json), ("plot", plot), ("markdown", markdown)):
        files.check_path(f"--{option}", path)
    if plot is not None:
        from mpisign.bench.plot import check

        check(plot)
    if markdown is not None:
        files.around(markdown, mark)


def report(paths: Paths, record: Record) -> None:
    """Tables first, then the files; BenchError if one cannot be written."""
    colour = on_terminal() and "NO_COLOR" not in os.environ
    for part in table.text(record, colour):
        print(f"{part}\n")
    for line in table.footnotes(record):
        print(textwrap.fill(line, table.WIDTH))
    sys.stdout.flush()
    tables = table.markdown(record)

    def plot(path: Path) -> None:
        from mpisign.bench.wire import plot  # matplotlib: only if asked for

        plot.write(path, record)

    files.write_all(
        [
            ("--cost", paths.cost, record.save_costs),
            ("--json", paths.json, record.write),
            ("--markdown", paths.markdown, lambda p: files.write_between_marks(p, MARK, tables)),
            ("--plot", paths.plot, plot),
        ]
    )
