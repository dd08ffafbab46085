"""How ranks wait: by what the machine has for them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from launchers import environment, find

from mpisign import simulation


def test_ranks_share_cores_where_there_are_more_of_them():
    cores = len(os.sched_getaffinity(0))
    for ranks in (1, cores, cores + 1):
        shared = simulation.run(ranks, lambda comm: comm.engine.progress.shares_cores)
        assert shared == [ranks > cores] * ranks


@pytest.mark.mpi
def test_debug_says_how_ranks_wait():
    ranks = len(os.sched_getaffinity(0)) + 1
    script = "import mpisign; mpisign.Communicator()"
    command = [find("mpirun"), "-n", str(ranks), "--oversubscribe", "--bind-to", "none"]
    done = subprocess.run(
        [*command, sys.executable, "-m", "mpi4py", "-c", script],
        env={**environment(), "MPISIGN_DEBUG": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0
    assert done.stderr.count("mpisign: ranks that wait yield their cores:") == 1
    assert f"{ranks} on {ranks - 1} cores here" in done.stderr
