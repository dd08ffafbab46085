"""``mpisign bench collectives`` checks votes against NumPy: right ones and wrong ones."""

from __future__ import annotations

import numpy as np
import pytest

from mpisign import simulation
from mpisign.bench.collectives import nodes
from mpisign.bench.collectives.method import Gradient, WrongResultError, sign_sums
from mpisign.bench.collectives.votes import IN_GROUPS, RANDOM, WEIGHTED, Votes
from mpisign.bench.settings import ALGORITHMS


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_votes_are_checked_against_numpy_with_ties_and_weights(size):
    """Every row of votes, and each of them with one sign turned."""
    here = nodes.Nodes((0,) * size)

    def rank(comm):
        found = []
        for made in Votes(lambda: comm, here).methods(ALGORITHMS):
            g = Gradient(4097, (97, 4000), comm.rank, comm.size)
            running = made.start(g)
            running.call()
            running.check()
            sums = sign_sums(
                g.all_ranks, [1, 2, 3, 1, 2][:size] if made.label == WEIGHTED else None
            )
            result = running.result()
            at = int(np.flatnonzero(sums)[-1])
            result[at] *= -1
            with pytest.raises(WrongResultError, match="wrong: 1 signs"):
                running.check()
            result[at] *= -1
            if made.label != RANDOM and not sums.all():
                result[np.flatnonzero(sums == 0)[0]] = -1
                with pytest.raises(WrongResultError, match="wrong: 1 ties are not positive"):
                    running.check()
            result[3] = 0
            with pytest.raises(WrongResultError, match=r"something else than \+1 and -1"):
                running.check()
            running.end()
            found.append(made.label)
        return found

    (found, *others) = simulation.run(size, rank)
    assert all(other == found for other in others) and len(found) >= 9


def test_votes_in_groups_are_checked_against_the_groups():
    here = nodes.Nodes((0, 0, 0, 1, 1, 1))

    def rank(comm):
        votes = Votes(lambda: comm, here)
        (method,) = [w for w in votes.methods(("alltoall",)) if w.label == IN_GROUPS]
        g = Gradient(5000, (5000,), comm.rank, comm.size)
        running = method.start(g)
        running.call()
        running.check()
        result = running.result().tobytes()
        g.out *= -1
        with pytest.raises(WrongResultError, match="signs are not the majority's"):
            running.check()
        return result

    assert len(set(simulation.run(6, rank))) == 1
    for ranks in (3, 4):
        methods = Votes(None, nodes.Nodes((0,) * ranks)).methods(ALGORITHMS)
        assert IN_GROUPS not in {method.label for method in methods}


def test_a_vote_of_votes_is_checked_against_its_own_rule():
    """Five ranks in groups of 2 and 3: the groups' majorities decide, not the ranks'."""

    def rank(comm):
        votes = Votes(lambda: comm, nodes.Nodes((0, 0, 1, 1, 1)))
        (method,) = [
            w for w in votes.methods(("auto", "vote_of_votes")) if w.label == "vote of votes"
        ]
        g = Gradient(4096, (4096,), comm.rank, 5)
        running = method.start(g)
        sums = [np.sign(sign_sums(g.all_ranks[a:b])) for a, b in ((0, 2), (2, 5))]
        g.out[:] = np.where(sums[0] + sums[1] < 0, -1, 1)
        running.check()
        g.out[np.flatnonzero(sums[0] + sums[1])[3]] *= -1
        with pytest.raises(WrongResultError, match="1 signs are not the majority's"):
            running.check()
        g.out[:] = np.where(sign_sums(g.all_ranks) < 0, -1, 1)
        with pytest.raises(WrongResultError, match="ties are not positive"):
            running.check()

    simulation.run(5, rank)
