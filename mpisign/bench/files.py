"""Files of results: paths checked before the work, tables written between two marks of a page."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from mpisign.bench.errors import BenchError


def check_path(option: str, path: Path | None) -> None:
    """Raises BenchError if no file can be written at ``path``."""
    if path is None:
        return
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise BenchError(f"{option} {path}: not a file in an existing directory")
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise BenchError(f"{option} {path}: cannot be written")


def write_all(parts: Iterable[tuple[str, Path | None, Callable[[Path], Any]]]) -> None:
    """Writes every (option, path, action) that has a path, then raises BenchError for failures."""
    failed = []
    for option, path, action in parts:
        try:
            if path is not None:
                action(path)
        except OSError as error:  # the others may still be written
            failed.append(f"{option} {path}: {error.strerror or error}")
        except BenchError as error:
            failed.append(str(error))
    if failed:
        raise BenchError("; ".join(failed))


def around(path: Path, mark: str) -> tuple[str, str]:
    """The text before and after the tables in ``path``, with the marks.

    BenchError if it has text but not two lines of ``mark``.
    """
    before = ""
    if path.is_file():  # a device may have no end
        try:
            before = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BenchError(f"--markdown {path}: {error}") from error
    marks = list(re.finditer(f"^{re.escape(mark)}[ \t]*$", before, re.MULTILINE))
    if len(marks) >= 2:
        return before[: marks[0].end()], before[marks[1].start() :]
    if before.strip():
        raise BenchError(
            f"--markdown {path}: has text but not two lines reading {mark}; add them where the "
            "tables belong, or name a new file"
        )
    return mark, f"{mark}\n"


def write_between_marks(path: Path, mark: str, tables: str) -> None:
    """Replaces what is between the marks by ``tables``."""
    head, tail = around(path, mark)
    path.write_text(f"{head}\n\n{tables}\n{tail}", encoding="utf-8")
