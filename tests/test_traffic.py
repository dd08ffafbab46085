"""What vote_traffic says of ranks that do not exist, against what simulated ranks really send."""

from __future__ import annotations

import threading
from collections import defaultdict

import numpy as np
import pytest
from messages import small_messages

import mpisign
from mpisign import simulation, stats
from mpisign.collectives import auto
from mpisign.collectives.costs import Costs
from mpisign.collectives.hierarchy import Hierarchy, grouped
from mpisign.engine.header import NBYTES, SHORT_ABOVE
from mpisign.transports.tagged import TaggedTransport

NODES = {
    1: [[0]],
    2: [[0, 0], [0, 1]],
    5: [[0, 1, 0, 1, 1], [0, 0, 0, 0, 1], [[0, 0, 1, 1, 2], [0, 0, 0, 0, 1]]],
    8: [[r // 2 for r in range(8)], [[r // 2 for r in range(8)], [r // 4 for r in range(8)]]],
    66: [[r // 3 for r in range(66)], [[r // 3 for r in range(66)], [r // 6 for r in range(66)]]],
}


class Counted:
    """Messages, bytes and memory of one rank; counts what its transport is given."""

    def __init__(self):
        self.sends = self.receives = self.sent = self.received = self.headers = self.memory = 0
        self.outside = 0

    def watch(self, transport, mates):
        exchange, allgather = transport._exchange, transport.start_allgather

        def counted(sends, recvs, tag):
            out, into = ([len(part) for _, part in parts if len(part)] for parts in (sends, recvs))
            self.sends, self.sent = self.sends + len(out), self.sent + sum(out)
            self.receives, self.received = self.receives + len(into), self.received + sum(into)
            self.outside += sum(len(part) for rank, part in sends if rank not in mates)
            return exchange(sends, recvs, tag)

        def gathered(send, rows, tag):
            self.headers += len(send) * (transport.size - 1)
            return allgather(send, rows, tag)

        transport._exchange, transport.start_allgather = counted, gathered


_OF_THREAD = {}


@pytest.fixture(autouse=True)
def counted_memory(monkeypatch):
    empty = TaggedTransport.empty

    def counted(wire, *shape):
        of = _OF_THREAD.get(threading.get_ident())
        if of is not None:
            of.memory += int(np.prod(shape))
        return empty(wire, *shape)

    monkeypatch.setattr(TaggedTransport, "empty", counted)
    yield
    _OF_THREAD.clear()


def vote(comm, length, how):
    counted, transport = Counted(), comm.engine.transport
    before = dict(vars(transport))
    counted.watch(transport, set(comm.engine.hierarchy.mates(comm.rank)))
    _OF_THREAD[threading.get_ident()] = counted
    comm.majority_vote(np.ones(length, dtype=np.float32), **how)
    vars(transport).clear()
    vars(transport).update(before)
    return counted


def check(got, said):
    """One rank: ``agreement`` goes through exchanges among many ranks, else by itself."""
    many = said.agreement_sends and not got.headers
    more = (said.agreement_sends, said.agreement_sent) if many else (0, 0)
    assert got.sends == said.sends + more[0]
    assert got.receives == said.receives + more[0]
    assert got.sent == said.sent + more[1]
    assert got.received == said.received + more[1]
    assert got.memory == said.memory
    if not many:
        assert got.headers == said.agreement_sent
        assert got.outside == said.sent_outside


@pytest.mark.parametrize("size", NODES)
@pytest.mark.parametrize("algorithm", ["allgather", "alltoall", "hierarchical", "vote_of_votes"])
@pytest.mark.parametrize("policies", [{}, {"zeros": "abstain", "nan": "raise", "ties": "zero"}])
def test_every_rank_sends_what_is_said(size, algorithm, policies, monkeypatch):
    small_messages(monkeypatch, 128)
    how = {"algorithm": algorithm, **policies}
    for nodes in NODES[size]:
        for length in (0, 7, 2000, 9001, 70_001) if size < 60 else (40_003,):
            ranks = simulation.run(size, vote, length, how, nodes=nodes)
            for rank, got in enumerate(ranks):
                said = mpisign.vote_traffic(
                    length, size, nodes=nodes, rank=rank, message=128, **how
                )
                assert said.rank == rank
                check(got, said)


EVEN = [r // 8 for r in range(1024)]
UNEVEN = [r // 16 * 2 + (r % 16 > 4) for r in range(1024)]  # 5 and 11 ranks


def racks(nodes):
    return [nodes, [n // 16 for n in nodes]]


@pytest.mark.slow
@pytest.mark.parametrize(
    "algorithm, nodes, length, policies",
    [
        ("hierarchical", racks(EVEN), 100_001, {"zeros": "abstain", "ties": "zero"}),
        ("hierarchical", racks(UNEVEN), 100_001, {}),
        pytest.param("hierarchical", EVEN, 100_001, {}, marks=pytest.mark.many),
        pytest.param("alltoall", EVEN, 100_001, {}, marks=pytest.mark.many),
        pytest.param("allgather", EVEN, 801, {}, marks=pytest.mark.many),
    ],
)
def test_a_thousand_ranks(algorithm, nodes, length, policies):
    size, how = 1024, {"algorithm": algorithm, **policies}
    stats().reset()
    ranks = simulation.run(size, vote, length, how, nodes=nodes)
    totals = stats().as_dict()["exchange"]
    assert totals["sent"] == sum(r.sent for r in ranks)
    assert totals["received"] == sum(r.received for r in ranks)
    busiest = mpisign.vote_traffic(length, size, nodes=nodes, **how)
    for rank in {0, 1, 7, 8, 500, 511, 1000, 1023, busiest.rank}:
        check(ranks[rank], mpisign.vote_traffic(length, size, nodes=nodes, rank=rank, **how))
    if nodes != racks(UNEVEN):  # to a byte for each message
        assert max(r.sends for r in ranks) == busiest.sends + busiest.agreement_sends
        most = busiest.sent + busiest.agreement_sent + busiest.sends
        assert max(r.sent for r in ranks) <= most


def test_agreement():
    few, many = mpisign.vote_traffic(10**6, SHORT_ABOVE), mpisign.vote_traffic(10**6, 1000)
    assert (few.agreement_sends, few.agreement_sent) == (63, 63 * NBYTES)
    assert (many.agreement_sends, many.agreement_sent) == (10, 10 * 16)
    long = mpisign.vote_traffic(10**8, 1000)  # which counts NaN chunk by chunk
    assert (long.agreement_sends, long.agreement_sent) == (20, 10 * 16 + 10)


@pytest.mark.parametrize("size", [8, 512, 16_384])
@pytest.mark.parametrize("length", [10**6, 10**8, 10**10])
@pytest.mark.parametrize("policies", [{}, {"zeros": "abstain", "ties": "zero"}])
def test_memory_is_bounded_at_any_size(size, length, policies):
    levels = [[r // 8 for r in range(size)], [r // 128 for r in range(size)]]
    most = 2 * (length // 8) + (64 << 20)  # a plane more where ballots are packed at once
    for algorithm in ("allgather", "alltoall", "hierarchical"):
        for nodes in (levels[0], levels):
            said = mpisign.vote_traffic(length, size, algorithm=algorithm, nodes=nodes, **policies)
            assert said.memory <= most, said


def test_errors():
    for error, given in {
        "algorithm must be one of": {"algorithm": "fast"},
        "length must be an integer from 0, got -1": {"length": -1},
        "size must be an integer from 1, got 0": {"size": 0},
        "rank must be below 4, got 4": {"rank": 4},
        "nodes must be one for each of 4 ranks, got 2": {"nodes": [0, 1]},
        "algorithm='auto' needs costs": {"algorithm": "auto"},
    }.items():
        with pytest.raises(ValueError, match=error):
            mpisign.vote_traffic(**{"length": 10, "size": 4, **given})


#: Microseconds a message, and 10 Gbit/s and 100 Gbit/s; within a node a tenth of it.
FAST = Costs(1e-6, 1e-11, 5e-6, 8e-11, 1e-7, 2e-6)
SLOW = Costs(1e-6, 1e-11, 5e-6, 8e-9, 1e-7, 2e-6)


def test_auto_takes_the_cheapest():
    size = 1024
    levels = [[r // 8 for r in range(size)], [r // 128 for r in range(size)]]
    hierarchy = Hierarchy([grouped(level) for level in levels])
    taken = defaultdict(set)
    for costs in (FAST, SLOW):
        for length in (100, 10**4, 10**6, 10**9):
            runs = auto.candidates(hierarchy, 2, length, 1, 1, 48 << 10)
            seconds = {choice: costs.seconds(run) for choice, run in runs.items()}
            choice = auto.cheapest(costs, hierarchy, 2, length, 1, 1, 48 << 10)
            assert seconds[choice] == min(seconds.values()) and len(seconds) == 4
            said = mpisign.vote_traffic(length, size, algorithm="auto", nodes=levels, costs=costs)
            assert said.algorithm == choice[0]
            taken[length].add(choice)
    # Messages decide on short votes: 1,023 of them against 7 + 15 + 7, up and down.
    assert taken[10**4] == {("hierarchical", 2)}


def test_all_ranks_take_the_same(monkeypatch):
    """Uneven nodes, and every rank with the costs that all agreed on."""
    nodes, chosen = [[0, 0, 0, 1, 1, 2, 2, 2, 3], [0, 0, 0, 0, 0, 1, 1, 1, 1]], []

    def body(comm):
        results = []
        for costs in (FAST, SLOW):
            comm.engine.costs = costs
            for length in (4000, 10**6):
                h = comm.engine.hierarchy
                chosen.append((costs, length, auto.cheapest(costs, h, 2, length, 1, 1, 48 << 10)))
                x = np.where(np.arange(length) % 9 <= comm.rank, 1.0, -1.0)
                results.append(comm.majority_vote(x, zeros="positive", ties="positive").tobytes())
        return results

    found = simulation.run(9, body, nodes=nodes)
    assert all(r == found[0] for r in found)
    assert len(set(chosen)) == 4
