"""Hostile ranks over MPI: the last rank lies in one way after the other; see test_byzantine.py."""

from __future__ import annotations

import warnings

import numpy as np
import reference as ref
import samples
from hostile import Accuser, LyingHelper, LyingOwner, Tampering, at, deviate, flipped, named
from mpi4py import MPI

import mpisign
from mpisign.engine import header
from mpisign.errors import BrokenError, CollectiveError
from mpisign.transports.mpi import MPITransport

WORLD = MPI.COMM_WORLD
RANK, SIZE = WORLD.rank, WORLD.size
LIAR = SIZE - 1
LENGTH = 70_003
warnings.filterwarnings("ignore", message="the vote's result is right")


class TamperingMPI(Tampering, MPITransport):
    pass


def communicator(tamper=None):
    kind = TamperingMPI if RANK == LIAR else MPITransport
    transport = kind(WORLD.Dup())
    if RANK == LIAR:
        transport.tamper = tamper
    return mpisign.Communicator(transport, timeout=20.0)


def vote(comm, length=LENGTH):
    xs = [samples.awkward(length, r) for r in range(SIZE)]
    result = comm.majority_vote(xs[RANK], byzantine_f=1, zeros="abstain", ties="zero")
    assert RANK == LIAR or np.array_equal(result, ref.vote(xs))


def bytes_are_those_of_the_formula():
    comm = communicator()
    x = np.ones(8 * 1000 * SIZE)
    mpisign.stats().reset()
    comm.majority_vote(x, byzantine_f=1, zeros="abstain", ties="zero")
    p, n, nbytes = SIZE, 3, 1000 * SIZE
    expected = (2 * n + 2) * nbytes * (p - 1) // p + (p - 1) * (header.NBYTES + 96 * p + 33 * n)
    assert mpisign.stats().as_dict()["exchange"]["received"] == expected


bytes_are_those_of_the_formula()
for kind in (LyingOwner, LyingHelper, Accuser):
    comm = communicator()
    if RANK == LIAR:
        deviate(comm, kind)
    for _ in range(3):
        vote(comm)
for step in ("results", "digests"):
    vote(communicator(at(step, flipped, {0})))
if SIZE > 3:
    vote(communicator(at("echo of commitments", flipped)))

comm = communicator(at("ballots", lambda part: part[:-1].copy(), {1}))
try:
    for _ in range(2):  # those that need nothing of rank 1 hear of it in the next vote
        vote(comm)
except CollectiveError as error:
    assert LIAR in named(error) or RANK == LIAR, error
else:
    raise AssertionError("no error")
try:
    vote(comm)
except BrokenError:
    print(f"rank {RANK} is done", flush=True)
