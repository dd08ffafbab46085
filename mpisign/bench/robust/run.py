"""``mpisign bench robust`` from its settings to its tables and JSON."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import sys
import textwrap
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import mpisign
from mpisign import _kernels, robust
from mpisign.bench import files
from mpisign.bench.errors import BenchError
from mpisign.bench.host import Host, cpu_model
from mpisign.bench.progress import Progress
from mpisign.bench.robust import measure, peer, table
from mpisign.bench.robust.results import Row
from mpisign.bench.stock import torch_there
from mpisign.bench.table import text

MARK = "<!-- mpisign bench robust -->"
FROM_MEMORY = 1 << 20  # bytes of rows: less is measured in the caches
_WIDTH = 100


@dataclass(frozen=True)
class Settings:
    """What to measure and where the results go. ``f``: None, as many as Bulyan takes."""

    rows: int
    size: int
    f: int
    rules: tuple[str, ...]
    frameworks: tuple[str, ...]
    dtype: str
    threads: int
    runs: int
    json: Path | None = None
    markdown: Path | None = None


@dataclass
class Record:
    """Everything that was measured: the JSON that programs read. ``peer``: ByzFL's version."""

    command: str
    settings: Settings
    peer: str | None
    rows: list[Row] = field(default_factory=list)

    @property
    def host(self) -> str:
        """What computed."""
        cores = len(os.sched_getaffinity(0))
        return f"{cpu_model()}, {cores} cores, kernels for {_kernels.isa()}"

    def as_dict(self) -> dict[str, Any]:
        """The document of ``--json``."""
        kept = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self.settings).items()}
        return {
            "mpisign": mpisign.__version__,
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": self.command,
            "settings": kept,
            "host": {"cpu": cpu_model(), "cores": os.cpu_count(), "name": platform.node()},
            "isa": _kernels.isa(),
            "versions": {
                "python": platform.python_version(),
                "numpy": np.__version__,
                "torch": importlib.metadata.version("torch") if torch_there() else None,
                "byzfl": self.peer,
            },
            "rows": [row.as_dict() for row in self.rows],
        }

    def write(self, path: Path) -> None:
        """Writes the JSON."""
        path.write_text(json.dumps(self.as_dict(), indent=1, allow_nan=False) + "\n")


def run(settings: Settings, command: str) -> int:
    """Measures and reports; the exit status. Raises BenchError for what a person can put right."""
    for option in ("json", "markdown"):
        files.check_path(f"--{option}", getattr(settings, option))
    if settings.markdown is not None:
        files.around(settings.markdown, MARK)
    _check(settings)
    byzfl = peer.aggregators()
    record = Record(command, settings, _version("byzfl") if byzfl else None)
    interrupted = False
    try:
        _measure(record, byzfl)
    except KeyboardInterrupt:
        interrupted = True
    _print(record)
    markdown = None if interrupted else settings.markdown
    files.write_all(
        [
            ("--json", settings.json, record.write),
            (
                "--markdown",
                markdown,
                lambda p: files.write_between_marks(p, MARK, table.markdown(record)),
            ),
        ]
    )
    if interrupted:
        print(f"\nmpisign: interrupted after {len(record.rows)} rows", file=sys.stderr)
    return 130 if interrupted else 0


def _check(s: Settings) -> None:
    """Raises BenchError for rules that cannot deal with so many rows, or a framework not there."""
    if "torch" in s.frameworks and not torch_there():
        raise BenchError("--framework torch: torch is not installed")
    needed = 3 * s.rows * s.size * np.dtype(s.dtype).itemsize
    host = Host(warm=False)
    if needed > host.available():
        raise BenchError(f"--rows, --size: needs {needed / 1e9:.1f} GB of memory")
    for name in s.rules:
        try:
            if name not in robust.MIXINGS:
                robust.by_name(name, s.f).check(s.rows)
        except ValueError as error:
            raise BenchError(f"--rules {name}: {error}") from error


def _measure(record: Record, byzfl: Any) -> None:
    s = record.settings
    nbytes = s.rows * s.size * np.dtype(s.dtype).itemsize
    host = Host(warm=nbytes < FROM_MEMORY)
    sets = host.copies(nbytes, max(s.size, host.small))
    rows = measure.made(s.rows, s.size, s.dtype, sets)
    with Progress(len(s.rules) * len(s.frameworks)) as progress:
        for framework in s.frameworks:
            for name in s.rules:
                progress.begin(f"{name}, {framework}")
                record.rows.append(
                    measure.measure(name, framework, s.f, rows, s.runs, s.threads, host, byzfl)
                )
                progress.end()


def _print(record: Record) -> None:
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    for part in table.tables(record):
        print(f"{text(part, colour)}\n")
    for line in table.footnotes(record):
        print(textwrap.fill(line, _WIDTH))
    verdicts = [row.met for row in record.rows if row.met is not None]
    if verdicts:
        print(f"{sum(verdicts)} of {len(verdicts)} goals met.")
    sys.stdout.flush()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "of an unknown version"
