"""Starts a job by its launcher, waits for its end, and looks for what is left of it."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import launchers

from faults.plan import Job
from faults.processes import TIMEOUT

PROGRAM = Path(__file__).with_name("rank.py")
_MARK = "CHECK_FAULTS_JOB"
_START = 240.0  # seconds until all ranks have started: imports take long on a busy machine
_LEFT = 6.0  # seconds that processes have to end after their launcher
#: What every rank has in its environment, and ``--timeout`` changes.
SETTINGS = {
    "MPISIGN_TIMEOUT": f"{TIMEOUT:g}",
    "MPISIGN_CHECK_EVERY": "4",
    "MPISIGN_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "HOROVOD_GLOO_IFACE": "lo",
    "GLOO_SOCKET_IFNAME": "lo",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}
_NEEDS = {
    "mpi": ("mpirun", "mpi4py"),
    "torch": ("torchrun", "torch"),
    "horovod-mpi": ("mpirun", "horovod"),
    "horovod-gloo": ("horovodrun", "horovod"),
}


@dataclass
class Ended:
    """How a job's processes ended."""

    status: int | None  # None: it had to be killed
    seconds: float
    left: list[str] = field(default_factory=list)  # command lines of processes that lived on
    output: str = ""


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{launchers.BIN}{os.pathsep}{os.environ['PATH']}")


def wires() -> dict[str, str]:
    """{wire: "" or what is missing for it}."""
    import importlib.util

    found = {}
    for wire, (program, module) in _NEEDS.items():
        missing = [program] if _program(program) is None else []
        missing += [module] if importlib.util.find_spec(module) is None else []
        found[wire] = ", ".join(missing)
    return found


def command(job: Job) -> list[str]:
    """The launcher and what it starts."""
    program = [str(PROGRAM), *job.words()]
    n, python = str(job.ranks), sys.executable
    if job.wire == "torch":
        many = ["--standalone", "--nproc-per-node", n]
        return [_program("torchrun") or "torchrun", *many, *program]
    if job.wire == "horovod-gloo":
        return [_program("horovodrun") or "horovodrun", "--gloo", "-np", n, python, *program]
    mpi4py = ["-m", "mpi4py"] if job.wire == "mpi" else []
    options = ["--oversubscribe", "--bind-to", "none"]
    return [_program("mpirun") or "mpirun", "-n", n, *options, python, *mpi4py, *program]


def shown(job: Job) -> str:
    """A line for a shell that starts the job again, alone."""
    timeout = {"FAULTS_TIMEOUT": SETTINGS["MPISIGN_TIMEOUT"]}
    settings = {**SETTINGS, **timeout, "PYTHONPATH": f"{launchers.ROOT}:{launchers.TESTS}"}
    return " ".join([*(f"{k}={v}" for k, v in settings.items()), shlex.join(command(job))])


def run(job: Job, folder: Path) -> Ended:
    """Runs it to its end, or until no rank has said a word for ``job.limit`` seconds.

    Ranks write to ``folder``.
    """
    mark = f"{os.getpid()}-{folder.name}"
    path = launchers.paths(launchers.QUICK, launchers.ROOT, launchers.TESTS)
    more = {
        **SETTINGS,
        "FAULTS_TIMEOUT": SETTINGS["MPISIGN_TIMEOUT"],
        _MARK: mark,
        "FAULTS_FOLDER": str(folder),
        "PYTHONPATH": path,
    }
    env = {k: v for k, v in launchers.environment().items() if not k.startswith("MPISIGN_")}
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command(job),
            cwd=folder,
            env={**env, **more},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = _wait(process, job, folder)
        except BaseException:
            _kill(mark, process)
            raise
        seconds = time.monotonic() - began
        left = [] if status is None else _lasting(mark)
        _kill(mark, process)
        output.seek(0)
        return Ended(status, seconds, left, output.read())


def _wait(process: subprocess.Popen[bytes], job: Job, folder: Path) -> int | None:
    """The launcher's exit status; None if it takes too long."""
    until, words = time.monotonic() + _START, -1
    while time.monotonic() < until:
        try:
            return process.wait(0.1)
        except subprocess.TimeoutExpired:
            said = [path.stat().st_size for path in folder.glob("rank-*")]
            if len(said) == job.ranks and sum(said) != words:
                words, until = sum(said), time.monotonic() + job.limit
    return None


def _of_job(mark: str) -> dict[int, str]:
    """{process: its command line} of all that have the job's mark in their environment."""
    needle, found = f"{_MARK}={mark}".encode(), {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if needle in (entry / "environ").read_bytes().split(b"\0"):
                line = (
                    (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                )
                found[int(entry.name)] = line.strip()
        except OSError:
            continue
    return found


def _lasting(mark: str) -> list[str]:
    """Those that live on for a while after the launcher."""
    until = time.monotonic() + _LEFT
    while (found := _of_job(mark)) and time.monotonic() < until:
        time.sleep(0.1)
    return list(found.values())


def _kill(mark: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(3):
        for pid in _of_job(mark):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(0.02)
    process.wait()
