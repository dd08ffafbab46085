"""One test on many ranks: those of MPI, and threads of this process, any number of them."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

import mpisign
from mpisign import simulation

MPI = pytest.importorskip("mpi4py.MPI")
WORLD = MPI.COMM_WORLD
RANK, SIZE = WORLD.rank, WORLD.size
several = pytest.mark.skipif(SIZE == 1, reason="needs ranks that can differ: see test_ranks.py")

#: (name, what one rank is given, what the others are given): ranks that disagree.
ODD_ONE_OUT = [
    ("length", {"x": np.ones(9)}, {}),
    ("dtype", {"x": np.ones(8, dtype=np.float32)}, {}),
    ("algorithm", {"algorithm": "alltoall"}, {"algorithm": "allgather"}),
    ("zeros", {"zeros": "abstain"}, {"zeros": "random"}),
    ("seed", {"seed": 1}, {"seed": 2}),
]

#: Under a launcher the ranks that it started; else MPI's one rank, and threads.
WORLDS = ["mpi"] if SIZE > 1 else ["mpi", 2, 3, 5, 9]
_MADE = {}


def same_on_all_ranks(*arrays, comm=WORLD):
    """Compares the bytes, not their digest's digest: every rank sees every rank's digest."""
    digest = hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).digest()
    received = np.empty((comm.size, 32), dtype=np.uint8)
    comm.Allgather(np.frombuffer(digest, dtype=np.uint8), received)
    return bool((received == received[0]).all())


def pairs(size):
    """Two ranks a node."""
    return [r // 2 for r in range(size)]


def on_ranks(world, function, *args):
    """``function(communicator, *args)`` on every rank of a world: its checks run on each."""
    if world == "mpi":
        if world not in _MADE:
            _MADE[world] = mpisign.Communicator(WORLD, nodes=pairs(SIZE))
        return [function(_MADE[world], *args)]
    # A rank whose check fails leaves the others waiting: not for long.
    return simulation.run(world, function, *args, nodes=pairs(world), timeout=20)
