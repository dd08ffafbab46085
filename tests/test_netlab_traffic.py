"""Bytes at the links of 8 nodes of 2 ranks, against those that vote_traffic says."""

from __future__ import annotations

import os
import sys

import pytest
from launchers import RANKS, ROOT, find, run, with_tests

pytestmark = [
    pytest.mark.slow,
    pytest.mark.mpi,
    pytest.mark.skipif(os.getuid() != 0, reason="scripts/netlab needs root"),
]
NETLAB = [sys.executable, ROOT / "scripts" / "netlab"]
LAB = ["--nodes", "8", "--ranks-per-node", "2", "--rate", "100mbit", "--wait", "60"]


def test_bytes_at_the_links():
    pytest.importorskip("mpi4py.MPI", reason="not installed: run scripts/setup")
    program = [sys.executable, "-m", "mpi4py", RANKS / "netlab_traffic.py"]
    ranks = [find("mpirun"), "--oversubscribe", "--bind-to", "none", *program]
    output = run([*NETLAB, "run", *LAB, "--", *ranks], env=with_tests(), timeout=170).stdout
    print(output)
    assert output.count(" agrees") == 16, output
