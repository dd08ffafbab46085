"""The census of votes: margins, ties and abstentions of a sample, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

import mpisign
import mpisign.log
from mpisign import census, simulation

ODD, EVEN = 5, 4
LENGTH = 1003  # all of it is looked at


@pytest.mark.parametrize(
    ("size", "options", "ways"),
    [
        (ODD, {"algorithm": "alltoall"}, 1),
        (EVEN, {"algorithm": "alltoall", "zeros": "abstain"}, 1),
        (EVEN, {"algorithm": "allgather", "zeros": "abstain", "ties": "zero"}, EVEN),
        (EVEN, {"algorithm": "hierarchical", "zeros": "abstain"}, 1),
        (EVEN, {"algorithm": "hierarchical", "zeros": "positive"}, 1),
        (6, {"algorithm": "alltoall", "groups": 3}, 1),
    ],
)
def test_census(sampling, size, options, ways):
    """All counts against NumPy, where ``ways`` ranks tally each coordinate."""
    rng = np.random.default_rng(0)
    x = rng.integers(-2, 3, (size, LENGTH)).astype(np.float32)
    nodes = [0, 0, 1, 1] if options["algorithm"] == "hierarchical" else None
    more = {"nodes": nodes} if nodes else {}
    zeros = options.get("zeros", "positive")
    options = {**options, "zeros": zeros}

    def vote(comm):
        comm.majority_vote(x[comm.rank], **options)

    simulation.run(size, vote, **more)
    signs = np.sign(x) if zeros == "abstain" else np.where(x < 0, -1, 1)
    difference = np.abs(signs.sum(0)).astype(int)
    cast = (signs != 0).sum()
    seen = sampling.votes
    assert seen.coordinates == ways * LENGTH
    assert seen.votes == ways * cast
    assert seen.abstentions == ways * (size * LENGTH - cast)
    assert seen.ties == ways * (difference == 0).sum()
    one_sided = (difference == (signs != 0).sum(0)) & (difference > 0)
    assert seen.unanimous == ways * one_sided.sum()
    values, counts = np.unique(difference, return_counts=True)
    assert seen.margins == dict(zip(values.tolist(), (ways * counts).tolist(), strict=True))
    majority = np.sign(signs.sum(0))
    lost = (signs * majority == -1).sum(1)
    wanted = {} if nodes else {r: ways * int(n) for r, n in enumerate(lost)}
    assert seen.against == wanted


def test_census_of_weights_and_of_few_steps(sampling):
    x = np.array([[1.0] * 8, [-1.0] * 8, [-1.0] * 8], np.float32)
    mpisign.log.sample_votes(2)

    def vote(comm):
        for step in (1, 2, 3):
            weight = (5, 1, 1)[comm.rank]
            comm.majority_vote(x[comm.rank], weight=weight, step=step, algorithm="alltoall")

    simulation.run(3, vote)
    assert sampling.votes.coordinates == 8  # of step 2 alone
    assert sampling.votes.margins == {round(3 * 3 / 7): 8}  # |5 - 2| of 7, times 3 ranks
    assert sampling.votes.against == {0: 0, 1: 8, 2: 8}


def test_samples_are_bounded_and_spread():
    """Of a long plane some bytes from one end to the other, others in the next sample."""
    census.every = 10
    try:
        at = np.arange(1 << 20)[census.places(1 << 20, 8, 0)]
        assert len(at) * 8 == census.COORDINATES
        assert at[0] == 0 and at[-1] > 0.99 * (1 << 20)
        assert at[0] != np.arange(1 << 20)[census.places(1 << 20, 8, 10)][0]
        assert len(np.arange(1 << 20)[census.places(1 << 20, 10_000, 0)]) <= 8
    finally:
        census.every = 0


def test_padding_within_a_bucket_is_no_coordinate(sampling):
    """Tensors of 3 and 13 coordinates lie in 3 bytes; the 13 gradients are 0."""
    torch = pytest.importorskip("torch", reason='pip install "mpisign[torch]"')

    def step(comm):
        parameters = [torch.nn.Parameter(torch.zeros(n, 1)) for n in (3, 13)]
        parameters[0].grad, parameters[1].grad = torch.ones(3, 1), torch.zeros(13, 1)
        sgd = torch.optim.SGD(parameters, lr=0.1)
        options = {"compression": mpisign.Compression.sign(zeros="abstain"), "skip": None}
        mpisign.DistributedOptimizer(sgd, comm=comm, **options).step()

    simulation.run(2, step, timeout=30)
    votes = sampling.votes
    assert votes.coordinates % 16 == 0 and votes.coordinates > 0
    assert votes.abstentions / (votes.votes + votes.abstentions) == 13 / 16
    assert votes.zeros / votes.gradients == 13 / 16
