"""Every wire that connects ranks here, and the launcher that starts it."""

from __future__ import annotations

import sys

import pytest
from launchers import ONE_THREAD, find, mpirun, run, with_tests

ENV = {"HOROVOD_GLOO_IFACE": "lo", "HOROVOD_DYNAMIC_PROCESS_SETS": "1"}
WIRES = {
    "mpi": ("mpirun", "mpi4py.MPI"),
    "torch": ("torchrun", "torch.distributed"),
    "horovod-mpi": ("mpirun", "horovod.torch"),
    "horovod-gloo": ("horovodrun", "horovod.torch"),
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


def start(wire, n, command, shared):
    """The output of ``python command`` on n ranks of a wire; ``shared``: a folder they can use."""
    launcher, module = WIRES[wire]
    pytest.importorskip(module, reason="not installed: run scripts/setup")
    kind = wire.partition("-")[0]
    if kind == "mpi":  # a rank that fails must end the others, not wait for them
        command = ["-m", "mpi4py", *command]
    env = ONE_THREAD if kind == "torch" else with_tests()
    env = {**env, **ENV, "MPISIGN_TEST_WIRE": kind, "MPISIGN_TEST_DIR": str(shared)}
    return launch(launcher, n, command, env).stdout
