"""``mpisign bench detox`` from its settings to its tables, JSON and plot."""

from __future__ import annotations

import datetime
import json
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

import mpisign
from mpisign.backend import threads
from mpisign.bench.detox import measure, report, results
from mpisign.bench.detox.results import Growth, Row
from mpisign.bench.detox.ways import ways
from mpisign.bench.errors import BenchError
from mpisign.bench.host import cpu_model
from mpisign.bench.progress import Progress
from mpisign.bench.results import Timing

_THREADS = "MPISIGN_NUM_THREADS"


@dataclass(frozen=True)
class Settings:
    """What to measure and where the results go."""

    ranks: tuple[int, ...]
    size: int
    rules: tuple[str, ...]
    redundancy: int
    steps: int
    repeat: int
    json: Path | None = None
    plot: Path | None = None
    markdown: Path | None = None


@dataclass
class Record:
    """Everything that was measured: the JSON that programs read."""

    command: str
    settings: Settings
    parameters: int
    rows: list[Row] = field(default_factory=list)
    growths: list[Growth] = field(default_factory=list)

    @property
    def host(self) -> str:
        """What computed."""
        return f"{cpu_model()}, {len(os.sched_getaffinity(0))} cores"

    def as_dict(self) -> dict[str, Any]:
        """The document of ``--json``."""
        kept = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self.settings).items()}
        return {
            "mpisign": mpisign.__version__,
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": self.command,
            "settings": kept,
            "parameters": self.parameters,
            "host": {"cpu": cpu_model(), "cores": os.cpu_count(), "name": platform.node()},
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "rows": [row.as_dict() for row in self.rows],
            "growth": [growth.as_dict() for growth in self.growths],
        }

    def write(self, path: Path) -> None:
        """Writes the JSON."""
        path.write_text(json.dumps(self.as_dict(), indent=1, allow_nan=False) + "\n")


def run(settings: Settings, command: str) -> int:
    """Measures and reports; 0, or 2 for what a person can put right."""
    try:
        report.check(settings)
        record = Record(command, settings, measure.parameters(settings.size))
        with _one_thread():
            _measure(record)
        report.report(record)
    except BenchError as error:
        print(f"mpisign bench detox: error: {error}", file=sys.stderr)
        return 2
    return 0


@contextmanager
def _one_thread() -> Iterator[None]:
    """Meanwhile kernels have one thread, as on a node with a rank a core."""
    before, of_torch = os.environ.get(_THREADS), torch.get_num_threads()
    os.environ[_THREADS] = "1"
    torch.set_num_threads(1)
    threads.of_environment.cache_clear()
    try:
        yield
    finally:
        os.environ.pop(_THREADS)
        if before is not None:
            os.environ[_THREADS] = before
        torch.set_num_threads(of_torch)
        threads.of_environment.cache_clear()


def _measure(record: Record) -> None:
    """Fills ``record``: all ways of a number of ranks in turns, so that all have the same luck."""
    s = record.settings
    each = len(list(ways(s.ranks[0], s.redundancy, s.rules)))
    with Progress(each * len(s.ranks) * s.repeat) as progress:
        for ranks in s.ranks:
            found: dict[Any, list[measure.Sample]] = {
                way: [] for way in ways(ranks, s.redundancy, s.rules)
            }
            errors: dict[Any, str] = {}
            for _ in range(s.repeat):
                for way, samples in found.items():
                    progress.begin(f"{way.label}, {ranks} ranks")
                    try:
                        if way not in errors:
                            samples.append(measure.sample(way, ranks, s.size, s.steps))
                    except BenchError as error:
                        errors[way] = str(error)
                    progress.end()
            rows = [
                Row(way, ranks, error=errors[way]) if way in errors else _row(way, ranks, samples)
                for way, samples in found.items()
            ]
            record.rows += results.beside(rows)
    record.growths = results.growths(record.rows)


def _row(way: Any, ranks: int, samples: list[measure.Sample]) -> Row:
    return Row(
        way,
        ranks,
        Timing.of([s.work for s in samples]),
        Timing.of([s.wall for s in samples]),
        min(s.computing for s in samples),  # by the clock: others that run only make it more
        Timing.of([s.sent for s in samples]).median,
    )
