"""The file of results: a line of JSON a cell, written whole or not at all."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from mpisign.training.errors import SettingsError


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Records by their cells' keys; a last line that was cut off is none.

    Raises SettingsError for a file that holds anything else.
    """
    try:
        return _parsed(path, path.read_bytes())[0]
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise SettingsError(f"--results {path}: cannot be read: {error}") from error


def _parsed(path: Path, content: bytes) -> tuple[dict[str, dict[str, Any]], int]:
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
    """The file, open for this process alone: ``with Results(path) as results``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: dict[str, dict[str, Any]] = {}
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Results:
        try:
            self._file = self.path.open("a+b")
        except OSError as error:
            raise SettingsError(f"--results {self.path}: cannot be written: {error}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise SettingsError(f"--results {self.path}: another run writes to it") from error
        self._file.seek(0)
        try:
            self.records, whole = _parsed(self.path, self._file.read())
        except SettingsError:
            self._file.close()
            raise
        self._file.truncate(whole)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, record: dict[str, Any]) -> None:
        """Appends a record, on the disk when this returns."""
        assert self._file is not None
        line = json.dumps(record, allow_nan=False, separators=(",", ":")) + "\n"
        self._file.write(line.encode())
        self._file.flush()
        os.fsync(self._file.fileno())
        self.records[record["key"]] = record
