"""The results of a study: a line of JSON for each cell, and statistics over the seeds."""

from __future__ import annotations

import fcntl
import json
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from mpisign.experiments.errors import SettingsError
from mpisign.experiments.plan import Group, Record

Records = dict[str, dict[str, Any]]


def read(path: Path) -> Records:
    """Records by their cells' keys; a last line that was cut off is ignored."""
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


Point = tuple[
    float, float, float, float
]  # step, round, bytes, bits; mean, lowest and highest metric


@dataclass(frozen=True)
class Summary:
    """One group's cells that are recorded. ``values``: the metric of each that did not diverge."""

    group: Group
    lr: float | None
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    diverged: int
    records: tuple[Record, ...]

    @property
    def mean(self) -> float | None:
        """Of ``values``; None without any."""
        return statistics.mean(self.values) if self.values else None

    @property
    def spread(self) -> float | None:
        """The sample's standard deviation; None for fewer than two values."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def code_bits(self) -> float | None:
        """Bits of a rank's own message in a step for each coordinate, by the code's length."""
        found = [r["result"]["bits"] for r in self.records]
        return statistics.mean(found) if found else None

    @property
    def all_bits(self) -> float | None:
        """The same over all steps."""
        found = [r["result"]["bits"] * r["result"]["steps"] for r in self.records]
        return statistics.mean(found) if found else None

    def also(self, name: str) -> list[float]:
        """A figure beside the metric, of each seed that did not diverge and has it."""
        return [float(r["result"][name]) for r in self.records if name in r["result"]]

    @property
    def recalls(self) -> list[list[float]]:
        """Of each seed that did not diverge: the recall of each digit."""
        return [r["result"]["recall"] for r in self.records if "recall" in r["result"]]

    def curve(self, along: str) -> list[Point]:
        """Mean, lowest and highest metric of the seeds by step, round, or bytes that a rank sent.

        "sent": over the wire; "bytes": by the code's length, without headers and copies.
        """
        curves = [r["result"]["curve"] for r in self.records if r["result"]["diverged"] is None]
        points = []
        for rows in zip(*curves, strict=False):
            values = [test for _, test, _ in rows if test is not None]
            if not values:
                continue
            x = float(rows[0][0])
            if along == "sent":
                x *= statistics.mean(r["result"]["sent"] for r in self.records)
            elif along == "bytes":
                own = (r["result"] for r in self.records)
                x *= statistics.mean(r["bits"] * r["parameters"] for r in own) / 8
            elif along == "round":
                x /= self.group.method.options.get("local_steps", 1)
            points.append((x, statistics.mean(values), min(values), max(values)))
        return points


def summaries(groups: Sequence[Group], records: Mapping[str, Any]) -> list[Summary]:
    """One for each group, in the same order, of what is recorded so far."""
    found = []
    for group in groups:
        lr = group.rate(records)
        cells = [] if lr is None else [c for c in group.reported(lr) if c.key in records]
        results = [records[c.key]["result"] for c in cells]
        found.append(
            Summary(
                group=group,
                lr=lr,
                seeds=tuple(c.seed for c in cells),
                values=tuple(float(r["test"]) for r in results if r["diverged"] is None),
                diverged=sum(r["diverged"] is not None for r in results),
                records=tuple(records[c.key] for c in cells),
            )
        )
    return found
