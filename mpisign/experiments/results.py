"""The file of results: a line of JSON for each cell, written whole or not at all."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from mpisign.experiments.errors import SettingsError

Records = dict[str, dict[str, Any]]


def read(path: Path) -> Records:
    """Records by their cells' keys; a last line that was cut off is ignored.

    Raises SettingsError for a file that holds anything else.
    """
    try:
        return _parsed(path, path.read_bytes())[0]
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise SettingsError(f"--results {path}: cannot be read: {error}") from error


def _parsed(path: Path, content: bytes) -> tuple[Records, int]:
    """The records, and the bytes of whole lines."""
    whole = content.rfind(b"\n") + 1
    records = {}
    for number, line in enumerate(content[:whole].splitlines(), 1):
        try:
            record = json.loads(line)
            records[record["key"]] = record
            record["result"]["diverged"], record["settings"]["seed"]
        except (ValueError, TypeError, KeyError) as error:
            raise SettingsError(
                f"--results {path}: line {number} is no result of mpisign study: {error!r}"
            ) from error
    return records, whole


class Results:
    """The records of an open file."""

    def __init__(self, path: Path, file: IO[bytes], records: Records) -> None:
        self.path, self.records, self._file = path, records, file

    def add(self, record: dict[str, Any]) -> None:
        """Appends a record, which is on the disk when this returns."""
        line = json.dumps(record, allow_nan=False, separators=(",", ":")) + "\n"
        self._file.write(line.encode())
        self._file.flush()
        os.fsync(self._file.fileno())
        self.records[record["key"]] = record


@contextmanager
def opened(path: Path) -> Iterator[Results]:
    """The file at ``path``, for this process alone."""
    try:
        file = path.open("a+b")
    except OSError as error:
        raise SettingsError(f"--results {path}: cannot be written: {error}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SettingsError(f"--results {path}: another run writes to it") from error
        file.seek(0)
        records, whole = _parsed(path, file.read())
        file.truncate(whole)
        yield Results(path, file, records)
