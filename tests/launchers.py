"""Real launchers in subprocesses: a hang becomes a failure with the output so far."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
RANKS = TESTS / "ranks"  # scripts and test files that run on several ranks
QUICK = TESTS / "quick"  # makes the start of a rank quick: see there
BIN = Path(sys.executable).parent
TCP = ["--mca", "pml", "ob1", "--mca", "btl", "tcp,self", "--mca", "btl_tcp_if_include", "lo"]
#: For ranks that share cores.
ONE_THREAD = {"MPISIGN_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
PYTEST = ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist"]


def find(program):
    """The launcher beside this Python, else on PATH; the test is skipped without one."""
    path = shutil.which(program, path=f"{BIN}{os.pathsep}{os.environ['PATH']}")
    if path is None:
        pytest.skip(f"{program} is not installed: run scripts/setup")
    return path


def environment(**extra):
    env = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMIX_", "HOROVOD_"))}
    env["PATH"] = f"{BIN}{os.pathsep}{env['PATH']}"
    env["OMPI_ALLOW_RUN_AS_ROOT"] = env["OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] = "1"
    env["PYTHONUNBUFFERED"] = "1"
    # Scripts in tests/ranks import from tests/.
    env["PYTHONPATH"] = paths(env.get("PYTHONPATH"), TESTS)
    env.update(extra)
    env["PYTHONPATH"] = paths(QUICK, env["PYTHONPATH"])
    return env


def paths(*folders):
    return os.pathsep.join(str(folder) for folder in folders if folder)


def with_tests(**extra):
    """An environment for scripts that import what lies in tests/."""
    path = paths(ROOT, TESTS, RANKS, os.environ.get("PYTHONPATH"))
    return {**ONE_THREAD, "PYTHONPATH": path, **extra}


def mpirun(n, *command, mca=(), **kwargs):
    """``mpirun -n n command``, as many ranks as asked for on however few cores."""
    more = ["--oversubscribe", "--bind-to", "none", *mca]
    return run([find("mpirun"), "-n", str(n), *more, *command], **kwargs)


def on_ranks(n, *command, env=None, **kwargs):
    """``python -m mpi4py command`` on n ranks: one that raises ends the others. Its output."""
    command = [sys.executable, "-m", "mpi4py", *command]
    return mpirun(n, *command, env=with_tests(**(env or {})), **kwargs).stdout


def suite(n, *files, timeout=240):
    """pytest on every one of n ranks; ``files``: in tests/ranks, or pytest's options."""
    files = [RANKS / f if str(f).endswith(".py") else f for f in files]
    output = on_ranks(n, *PYTEST, *files, timeout=timeout)
    assert output.count(" passed") == n, output


def run(command, timeout=240, check=True, env=None):
    """Runs a command in a session of its own; on a timeout the whole session is killed."""
    process = subprocess.Popen(
        [str(c) for c in command],
        cwd=ROOT,
        env=environment(**(env or {})),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        pytest.fail(f"hung: {' '.join(map(str, command))} took over {timeout} s\n{output}")
    if check and process.returncode != 0:
        pytest.fail(f"exit {process.returncode}: {' '.join(map(str, command))}\n{output}")
    return subprocess.CompletedProcess(command, process.returncode, output, "")
