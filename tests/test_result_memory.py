"""Results without out=: memory is handed out again once nobody can see it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mpisign
from mpisign.engine.result_memory import ResultMemory

SHAPE = (1000, 300)  # above a MiB in float32


def place(x):
    return x.__array_interface__["data"][0]


@pytest.mark.parametrize(
    "hold",
    [
        lambda x: x[3:, ::2],
        lambda x: torch.from_numpy(x)[5],
        lambda x: memoryview(x),
        lambda x: np.asarray(x).T.view(np.int32),
    ],
    ids=["slice", "torch", "buffer", "view"],
)
def test_what_is_still_seen_is_not_handed_out(hold):
    memory = ResultMemory()
    first = memory.empty(SHAPE, np.float32)
    at, seen = place(first), hold(first)
    del first
    others = [memory.empty(SHAPE, np.float32) for _ in range(3)]
    assert at not in [place(x) for x in others]
    del others, seen
    assert at in [place(memory.empty(SHAPE, np.float32)), place(memory.empty(SHAPE, np.float32))]


def test_small_results_and_other_sizes_are_new():
    memory = ResultMemory()
    small = [memory.empty((10,), np.float64) for _ in range(3)]
    assert len({place(x) for x in small}) == 3 and small[0].base is None
    assert memory.empty((1 << 20,), np.float16).shape == (1 << 20,)


def test_votes_in_a_loop_write_to_two_places():
    comm = mpisign.Communicator("mpi")
    x = np.ones(1 << 19, np.float32)
    places, vote = set(), None
    for _ in range(6):
        vote = comm.majority_vote(x)
        places.add(place(vote))
        assert vote.all()
    assert len(places) == 2
