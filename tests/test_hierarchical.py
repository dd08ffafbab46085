"""Votes over nodes, on simulated ranks: the flat result, and what the vote of votes makes of it."""

from __future__ import annotations

import numpy as np
import pytest
import reference as ref
import samples
from messages import small_messages

import mpisign
from mpisign import simulation
from mpisign.collectives.hierarchy import Hierarchy, grouped
from mpisign.engine import header
from mpisign.errors import CollectiveError

NODES = [
    [0],
    [0, 0, 0],
    [0, 1, 2],
    [0, 0, 1, 1],
    [0, 1, 0, 1, 1],
    [2, 2, 2, 1, 1, 1, 1, 1, 1],
    [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2],
]
LEVELS = [
    [[0, 0, 1, 1], [0, 0, 0, 0]],
    [[0, 1, 2, 3, 4], [0, 0, 1, 1, 1]],  # each rank a node
    [[0, 0, 1, 1, 2, 2, 3, 3], [0, 0, 0, 0, 1, 1, 1, 1]],
    [[5, 5, 2, 2, 2, 7, 8, 8, 9], [1, 1, 1, 1, 1, 0, 0, 0, 0]],  # nodes of 1 to 3, racks of 2 and 3
    [[0, 1, 2, 0, 1, 2, 0, 1], [1, 0, 0, 1, 0, 0, 1, 0]],  # interleaved; a rack of one node
    [list(range(8)), [0, 0, 1, 1, 2, 2, 3, 3], [0, 0, 0, 0, 1, 1, 1, 1]],  # halved three times
    [[0, 0, 1, 1, 2, 3, 4, 4, 5], [0, 0, 0, 0, 1, 1, 2, 2, 2], [0, 0, 0, 0, 0, 0, 1, 1, 1]],
]


def vote(comm, length, algorithm, zeros, ties, weights):
    x = samples.awkward(length, 100 + comm.rank, np.float32)
    return comm.majority_vote(
        x, algorithm=algorithm, zeros=zeros, ties=ties, weight=weights[comm.rank], seed=3
    )


def name(nodes):
    several = isinstance(nodes[0], list)
    return " ".join("".join(map(str, level)) for level in (nodes if several else [nodes]))


WEIGHINGS = ["even", "ranks", "halves", "nodes"]


@pytest.mark.parametrize("nodes", NODES + LEVELS, ids=name)
@pytest.mark.parametrize("weighing", WEIGHINGS)
def test_hierarchical_is_the_flat_vote_bit_for_bit(nodes, weighing):
    # Every weighing and all nodes meet both policies.
    odd = ((NODES + LEVELS).index(nodes) + WEIGHINGS.index(weighing)) % 2
    zeros, ties = ("random", "random") if odd else ("abstain", "zero")
    p = len(nodes[0]) if isinstance(nodes[0], list) else len(nodes)
    weights = {
        "even": [1] * p,
        "ranks": list(range(p)),
        "halves": [0.5 + r for r in range(p)],
        "nodes": [2 * (r % 3 == 0) for r in range(p)],  # of some groups nobody has a weight
    }
    for length in (0, 33, 40_001):
        args = (zeros, ties, weights[weighing])
        flat = simulation.run(p, vote, length, "alltoall", *args)
        tree = simulation.run(p, vote, length, "hierarchical", *args, nodes=nodes)
        assert len({r.tobytes() for r in (*flat, *tree)}) == 1


@pytest.mark.parametrize(
    "nodes", [[0, 1, 0, 1, 0], [0, 1, 2, 3], [0, 0, 1, 1], LEVELS[3], LEVELS[6]], ids=name
)
@pytest.mark.parametrize("length", [9_001, 140_001])  # 2 chunks, and 16
def test_many_chunks(nodes, length, monkeypatch):
    small_messages(monkeypatch, 128)
    p = len(nodes[0]) if isinstance(nodes[0], list) else len(nodes)
    args = (length, "allgather", "abstain", "zero", [1] * p)
    flat = simulation.run(p, vote, *args)
    tree = simulation.run(p, vote, length, "hierarchical", *args[2:], nodes=nodes)
    assert len({r.tobytes() for r in (*flat, *tree)}) == 1


@pytest.mark.parametrize("nodes", NODES, ids=lambda n: "".join(map(str, n)))
@pytest.mark.parametrize("zeros", ["abstain", "positive"])
def test_vote_of_votes_is_the_sign_of_the_nodes_signs(nodes, zeros):
    p, length = len(nodes), 999
    xs = np.stack([samples.awkward(length, 100 + r, np.float32) for r in range(p)])
    signs = np.sign(xs) if zeros == "abstain" else np.where(xs < 0, -1.0, 1.0)
    expected = ref.vote_of_votes(signs, grouped(nodes)).astype(np.float32)
    for result in simulation.run(
        p, vote, length, "vote_of_votes", zeros, "zero", [1] * p, nodes=nodes
    ):
        assert np.array_equal(result, expected)


def test_a_minority_wins_a_vote_of_votes():
    # 4 of 9 ranks say -, two in each of two nodes: what the documentation warns of.
    signs = [-1, -1, 1, -1, -1, 1, 1, 1, 1]

    def ballot(comm, algorithm):
        x = np.full(8, signs[comm.rank], dtype=np.float32)
        return comm.majority_vote(x, algorithm=algorithm)[0]

    nodes = [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert set(simulation.run(9, ballot, "vote_of_votes", nodes=nodes)) == {-1.0}
    assert set(simulation.run(9, ballot, "hierarchical", nodes=nodes)) == {1.0}


def test_what_crosses_the_link_of_a_node():
    # 2 nodes of 4 ranks: 3 count planes up and 1 plane down, half of each to the other node.
    length, nodes, crossed = 80_000, [0, 0, 0, 0, 1, 1, 1, 1], []

    def counted(comm):
        line_of = comm.engine.transport._exchange

        def exchange(sends, recvs, tag):
            planes = [(r, p) for r, p in sends if len(p) != header.NBYTES]
            crossed.extend(len(p) for r, p in planes if nodes[r] != nodes[comm.rank])
            return line_of(sends, recvs, tag)

        comm.engine.transport._exchange = exchange
        comm.majority_vote(np.ones(length, dtype=np.float32), algorithm="hierarchical")

    simulation.run(8, counted, nodes=nodes)
    assert sum(crossed) == 2 * (3 + 1) * length // 8 // 2
    assert sum(crossed) / 2 < 0.75 * 4 * length // 8  # flat alltoall: 2 planes up and 2 down


def test_all_ranks_must_be_told_the_same_nodes():
    def make(comm):
        mpisign.Communicator(comm.engine.transport, nodes=[0, 1, comm.rank % 2])

    with pytest.raises(CollectiveError, match="nodes must be the same list on all ranks"):
        simulation.run(3, make)
    with pytest.raises(ValueError, match="one for each of 3 ranks, got 2"):
        simulation.run(3, make, nodes=[0, 1])
    with pytest.raises(ValueError, match="one for each of 3 ranks, got 2 at level 1"):
        simulation.run(3, make, nodes=[[0, 1, 1], [0, 1]])


def test_groups_of_a_level_are_unions_of_those_below():
    everywhere = []

    def make(comm):
        try:
            mpisign.Communicator(comm.engine.transport, nodes=[[0, 0, 1, 1], [0, 1, 1, 1]])
        except ValueError as error:
            everywhere.append(str(error))

    simulation.run(4, make)
    assert len(everywhere) == 4 and len(set(everywhere)) == 1
    assert "level 1 that are unions of groups of level 0, but ranks 0 and 1" in everywhere[0]


def test_nodes_that_are_wrong_on_one_rank():
    raised = {}

    def make(comm):
        nodes = [0, 1] if comm.rank == 2 else None
        try:
            mpisign.Communicator(comm.engine.transport, nodes=nodes, timeout=20)
        except (ValueError, CollectiveError) as error:
            raised[comm.rank] = error

    simulation.run(4, make)
    assert type(raised.pop(2)) is ValueError
    assert sorted(raised) == [0, 1, 3]
    for error in raised.values():
        assert "rank 2 broke off: ValueError: Communicator: nodes must be one for" in str(error)


def random_levels(seed):
    """Two levels of uneven groups, ranks in any order."""
    rng = np.random.default_rng(seed)
    nodes = rng.permutation(np.repeat(np.arange(7), rng.integers(1, 5, 7)))
    racks = rng.permutation(np.repeat(np.arange(3), [1, 2, 4]))
    return [nodes.tolist(), racks[nodes].tolist()]


@pytest.mark.parametrize("levels", [*LEVELS, *map(random_levels, range(20))], ids=name)
def test_every_part_has_one_owner_and_peers_know_each_other(levels):
    hierarchy = Hierarchy([grouped(level) for level in levels])
    places = [hierarchy.levels(rank) for rank in range(len(levels[0]))]
    owned = [tuple(level.place for level in mine) for mine in places if all(at.owns for at in mine)]
    assert len(set(owned)) == len(owned) == np.prod(hierarchy.parts)
    for rank, mine in enumerate(places):
        for at, level in enumerate(mine):
            assert not level.peers or level.peers[level.place] == rank
            assert all(places[peer][at].peers == level.peers for peer in level.peers)
            assert all(p in c for p, c in zip(level.peers, level.children, strict=False))
    assert all(level.owns for level in places[hierarchy.busiest])


@pytest.mark.parametrize("seed", range(4))
def test_uneven_levels_in_any_order(seed):
    levels = random_levels(seed)
    p, args = len(levels[0]), ("abstain", "random")
    weights = [r % 4 for r in range(p)]
    flat = simulation.run(p, vote, 5001, "alltoall", *args, weights)
    tree = simulation.run(p, vote, 5001, "hierarchical", *args, weights, nodes=levels)
    assert len({r.tobytes() for r in (*flat, *tree)}) == 1
