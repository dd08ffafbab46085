"""The files in tests/ranks again, under the real launcher, at several ranks."""

from __future__ import annotations

import sys

import pytest
from launchers import mpirun


@pytest.mark.parametrize("n", [*(pytest.param(n, marks=pytest.mark.many) for n in (2, 3)), 4])
def test_the_collectives_at(n):
    mpirun(
        n,
        sys.executable,
        *("-m", "mpi4py", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"),
        *("tests/ranks/test_majority_vote.py", "tests/ranks/test_optimizer.py"),
        timeout=180,
        env={"MPISIGN_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.parametrize("n", [*(pytest.param(n, marks=pytest.mark.many) for n in (2, 3)), 4])
def test_counts_and_means_at(n):
    mpirun(
        n,
        sys.executable,
        *("-m", "mpi4py", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"),
        *("tests/ranks/test_counts.py", "tests/ranks/test_compressed_mean.py"),
        timeout=180,
        env={"MPISIGN_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.many
def test_more_ranks_than_bytes():
    mpirun(
        9,
        sys.executable,
        *("-m", "mpi4py", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"),
        *("tests/ranks/test_majority_vote.py", "-k", "reference and (1- or 33- or 127-)"),
        timeout=180,
        env={"MPISIGN_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
    )
