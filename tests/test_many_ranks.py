"""Hundreds of ranks that are threads: results, errors, and bytes that do not grow with them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import samples

from mpisign import simulation, stats
from mpisign.engine import header
from mpisign.engine.preamble import PREAMBLE
from mpisign.errors import CollectiveError, DisagreementError, NaNError

LENGTH = 200_000


def received(size):
    """Bytes that a rank receives for a vote by alltoall, on average; checks the result."""
    patterns = np.stack([samples.awkward(LENGTH, 100 + i, np.float32) for i in range(5)])
    signs = np.where(patterns < 0, -1, 1)
    votes = sum(signs[r % 5] for r in range(size))
    expected = np.where(votes < 0, -1, 1).astype(np.float32)

    def vote(comm):
        x = patterns[comm.rank % 5]
        out = comm.majority_vote(x, algorithm="alltoall", zeros="positive", ties="positive")
        return np.array_equal(out, expected)

    stats().reset()
    assert all(simulation.run(size, vote))
    return stats().as_dict()["exchange"]["received"] / size


@pytest.mark.slow
@pytest.mark.parametrize("size", [120, pytest.param(1000, marks=pytest.mark.many)])
def test_a_vote_of_very_many_ranks(size):
    few, many = received(4), received(size)
    planes = 2 * LENGTH / 8  # one up, one down
    assert few == pytest.approx(planes * 3 / 4 + 3 * (header.NBYTES + PREAMBLE))
    widest = -(-LENGTH // 8 // size)  # of a shard
    assert many == pytest.approx(
        (size - 1) * (2 * widest + PREAMBLE) + math.ceil(math.log2(size)) * 16
    )


def test_errors_among_many():
    size = header.SHORT_ABOVE + 1

    def body(comm):
        x = np.ones(100, dtype=np.float32)
        if comm.rank == 70 % size:
            x[1] = np.nan
        with pytest.raises(NaNError, match=f"1 on rank {70 % size}"):
            comm.majority_vote(x)
        with pytest.raises(DisagreementError, match=f"length .*rank {size - 1}: 8"):
            comm.majority_vote(np.ones(9 - (comm.rank == size - 1)))
        with pytest.raises(CollectiveError, match="seed must be"):
            comm.majority_vote(np.ones(9), seed=-1)  # on all, whose headers are alike
        weighted = comm.majority_vote(
            np.where(comm.rank, -1.0, 1.0) * np.ones(3), weight=1 + 999 * (comm.rank == 0)
        )
        digested = [comm.majority_vote(np.ones(20_000)) for _ in range(17)][-1]
        return float(weighted[0]), float(digested[0])

    assert set(simulation.run(size, body)) == {(1.0, 1.0)}
