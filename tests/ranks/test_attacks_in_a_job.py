"""Hostile ranks over real MPI: the side channel beside votes, and a lying owner."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from worlds import several

import mpisign
from mpisign.attacks import Adversaries, by_name
from mpisign.attacks.owner import lie_about_shards

pytestmark = several


@pytest.fixture(scope="module")
def comm():
    made = mpisign.Communicator("mpi")
    yield made
    made.free()


def rows(size, d, step):
    return np.random.default_rng([size, step]).normal(0.3, 1, (size, d)).astype("float32")


@pytest.mark.parametrize("name", ["alie", "ipm", "omniscient"])
def test_votes_with_hostile_ranks_are_those_of_their_rows(comm, name):
    d, hostile = 300_000, [comm.size - 1]  # two pieces
    parameter = torch.nn.Parameter(torch.zeros(d))
    bad = Adversaries(name, hostile, comm)
    for step in range(2):
        x = rows(comm.size, d, step)
        parameter.grad = torch.from_numpy(x[comm.rank].copy())
        bad.gradients([parameter])
        x[-1] = by_name(name, f=1)(x[:-1])
        assert np.array_equal(parameter.grad.numpy(), x[comm.rank])
        votes = comm.majority_vote(parameter.grad, ties="zero").numpy()
        assert np.array_equal(votes, np.sign(np.sign(x).sum(0)))


def test_a_lying_owner_is_believed_and_found_out(comm):
    x = rows(comm.size, 999, 5)[comm.rank]
    true = comm.majority_vote(x, algorithm="alltoall", step=3)
    lying = mpisign.Communicator("mpi")
    if comm.rank == 1:
        lie_about_shards(lying)
    assert not np.array_equal(lying.majority_vote(x, algorithm="alltoall", step=3), true)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        got = lying.majority_vote(x, algorithm="alltoall", byzantine_f=1, step=3)
    assert np.array_equal(got, true)
    assert any("rank 1 sent false tallies" in str(w.message) for w in caught)
    lying.free()
