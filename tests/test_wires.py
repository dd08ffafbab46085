"""tests/ranks/test_transports.py over every wire that runs here, by its own launcher."""

from __future__ import annotations

import sys

import pytest
from launchers import find, mpirun, run

SUITE = ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
FILES = ["tests/ranks/test_transports.py", "tests/ranks/test_any_wire.py"]
ENV = {
    "MPISIGN_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "HOROVOD_GLOO_IFACE": "lo",
    "HOROVOD_DYNAMIC_PROCESS_SETS": "1",
}


def launch(launcher, n, command, env):
    """``python command`` on n ranks."""
    if launcher == "mpirun":
        return mpirun(n, sys.executable, *command, env=env)
    if launcher == "torchrun":
        many = ["--nproc-per-node", n, "--master-addr", "127.0.0.1", "--master-port", "0"]
        return run([find("torchrun"), "--standalone", *many, *command], env=env)
    program = [find("horovodrun"), "--gloo", "-np", n, sys.executable]
    return run([*program, *command], env=env)


WIRES = {
    "mpi": ("mpirun", "mpi4py.MPI"),
    "torch": ("torchrun", "torch.distributed"),
    "horovod-mpi": ("mpirun", "horovod.torch"),
    "horovod-gloo": ("horovodrun", "horovod.torch"),
}


#: Ranks that are tested every time; the others with MPISIGN_TEST_ALL=1.
USUAL = {"mpi": (1, 5), "torch": (2, 3), "horovod-mpi": (2, 3), "horovod-gloo": (1, 3)}


def start(wire, n, command, shared):
    launcher, module = WIRES[wire]
    pytest.importorskip(module, reason="not installed: run scripts/setup")
    kind = wire.partition("-")[0]
    if kind == "mpi":  # a rank that fails must end the others, not wait for them
        command = ["-m", "mpi4py", *command]
    env = {**ENV, "MPISIGN_TEST_WIRE": kind, "MPISIGN_TEST_DIR": str(shared)}
    return launch(launcher, n, command, env).stdout


@pytest.mark.parametrize(
    "wire, n",
    [
        pytest.param(wire, n, marks=[] if n in USUAL[wire] else pytest.mark.many)
        for wire in WIRES
        for n in (1, 2, 3, 4, 5)
    ],
)
def test_the_suite_over(wire, n, tmp_path):
    output = start(wire, n, [*SUITE, *FILES], tmp_path)
    assert output.count(" passed") == n, output


@pytest.mark.slow
@pytest.mark.parametrize("wire", [wire for wire in WIRES if wire != "mpi"])
def test_a_rank_that_gives_up_can_leave(wire, tmp_path):
    """Without the ranks that it waited for; over MPI it ends the whole job."""
    kind = wire.partition("-")[0]
    output = start(wire, 2, ["tests/ranks/leaves_early.py", kind, str(tmp_path)], tmp_path)
    assert "rank 0 has ended" in output, output
