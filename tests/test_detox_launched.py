"""DETOX on real ranks, more of them than cores."""

from __future__ import annotations

import sys

import pytest
from launchers import mpirun


@pytest.mark.parametrize("n", [pytest.param(6, marks=pytest.mark.many), 9])
def test_groups_under_mpirun(n):
    env = {"MPISIGN_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": "tests:tests/ranks"}
    done = mpirun(
        n, sys.executable, "-m", "mpi4py", "tests/ranks/detox_ranks.py", timeout=180, env=env
    )
    assert done.stdout.count("is well") == n
