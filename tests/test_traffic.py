"""What vote_traffic says of ranks that do not exist, against what simulated ranks really send."""

from __future__ import annotations

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
from mpisign.engine.preamble import PREAMBLE
from mpisign.transports.base import Transport

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
        self.sends = self.receives = self.sent = self.received = self.outside = self.memory = 0

    def watch(self, transport, mates):
        exchange, allgather = transport._exchange, transport.start_allgather

        def counted(sends, recvs, tag):
            out, into = ([len(part) for _, part in parts if len(part)] for parts in (sends, recvs))
            self.sends, self.sent = self.sends + len(out), self.sent + sum(out)
            self.receives, self.received = self.receives + len(into), self.received + sum(into)
            self.outside += sum(len(part) for rank, part in sends if rank not in mates)
            return exchange(sends, recvs, tag)

        def gathered(send, rows, tag):
            others = [(r, send) for r in range(transport.size) if r != transport.rank]
            counts = len(others), len(others) * len(send)
            self.sends, self.sent = self.sends + counts[0], self.sent + counts[1]
            self.receives, self.received = self.receives + counts[0], self.received + counts[1]
            self.outside += sum(len(part) for rank, part in others if rank not in mates)
            return allgather(send, rows, tag)

        transport._exchange, transport.start_allgather = counted, gathered


def votes(comm, length, how, times=2):
    """What the first call of a kind takes, and what the second."""
    transport = comm.engine.transport
    before, calls = dict(vars(transport)), []
    mates = set(comm.engine.hierarchy.mates(comm.rank))
    for _ in range(times):
        calls.append(Counted())
        calls[-1].watch(transport, mates)
        comm.majority_vote(np.ones(length, dtype=np.float32), **how)
        calls[-1].memory = comm.engine.plans.nbytes
        vars(transport).clear()
        vars(transport).update(before)
    return calls


def check(got, said, size, mates):
    """One rank: ``got`` has the vote and the agreement."""
    assert got.sends == said.sends + said.agreement_sends
    assert got.receives == said.receives + said.agreement_sends
    assert got.sent == said.sent + said.agreement_sent
    assert got.received == said.received + said.agreement_sent
    assert got.memory == said.memory
    if size <= SHORT_ABOVE:  # agreement goes to all others alike
        outside = size - len(mates)
        assert got.outside == said.sent_outside + said.agreement_sent * outside // max(1, size - 1)


def check_both(calls, length, size, rank, how):
    """The first call and the second."""
    for got, first in zip(calls, (True, False), strict=False):
        said = mpisign.vote_traffic(length, size, rank=rank, first=first, **how)
        assert said.rank == rank
        levels = how["nodes"] if isinstance(how["nodes"][0], list) else [how["nodes"]]
        mates = [r for r in range(size) if levels[0][r] == levels[0][rank]]
        check(got, said, size, mates)


@pytest.mark.parametrize(
    "size, algorithm",
    [
        pytest.param(n, name, marks=pytest.mark.many if n > 60 and name != "alltoall" else ())
        for n in NODES
        for name in ("allgather", "alltoall", "hierarchical", "vote_of_votes")
    ],
)
@pytest.mark.parametrize("policies", [{}, {"zeros": "abstain", "nan": "raise", "ties": "zero"}])
def test_every_rank_sends_what_is_said(size, algorithm, policies, monkeypatch):
    small_messages(monkeypatch, 128)
    monkeypatch.setattr(Transport, "first_message", 600)
    how = {"algorithm": algorithm, **policies}
    for nodes in NODES[size]:
        for length in (0, 7, 3584, 9001, 70_001) if size < 60 else (40_003,):
            ranks = simulation.run(size, votes, length, how, nodes=nodes)
            for rank, calls in enumerate(ranks):
                check_both(calls, length, size, rank, {**how, "nodes": nodes, "message": 128})


EVEN = [r // 8 for r in range(1024)]
UNEVEN = [r // 16 * 2 + (r % 16 > 4) for r in range(1024)]  # 5 and 11 ranks


def racks(nodes):
    return [nodes, [n // 16 for n in nodes]]


@pytest.mark.slow
@pytest.mark.many
@pytest.mark.parametrize(
    "algorithm, nodes, length, policies",
    [
        ("hierarchical", racks(EVEN), 100_001, {"zeros": "abstain", "ties": "zero"}),
        ("hierarchical", racks(UNEVEN), 100_001, {}),
        ("hierarchical", EVEN, 100_001, {}),
        ("alltoall", EVEN, 100_001, {}),
        ("allgather", EVEN, 801, {}),
    ],
)
def test_a_thousand_ranks(algorithm, nodes, length, policies):
    size, how = 1024, {"algorithm": algorithm, **policies}
    stats().reset()
    ranks = simulation.run(size, votes, length, how, 1, nodes=nodes)  # a second is like it
    totals = stats().as_dict()["exchange"]
    assert totals["sent"] == sum(call.sent for calls in ranks for call in calls)
    assert totals["received"] == sum(call.received for calls in ranks for call in calls)
    busiest = mpisign.vote_traffic(length, size, nodes=nodes, **how)
    for rank in {0, 1, 7, 8, 500, 511, 1000, 1023, busiest.rank}:
        check_both(ranks[rank], length, size, rank, {**how, "nodes": nodes})
    if nodes != racks(UNEVEN):  # to a byte for each message
        assert max(calls[0].sends for calls in ranks) == busiest.sends + busiest.agreement_sends
        most = busiest.sent + busiest.agreement_sent + busiest.sends
        assert max(calls[0].sent for calls in ranks) <= most


def agreement(length, size, **how):
    said = mpisign.vote_traffic(length, size, **how)
    return said.agreement_sends, said.agreement_sent


def test_agreement():
    for algorithm in ("allgather", "alltoall"):  # preambles travel with planes
        assert agreement(10**6, SHORT_ABOVE, algorithm=algorithm) == (0, 0)
        first = agreement(10**6, SHORT_ABOVE, algorithm=algorithm, first=True)
        assert first == (63, 63 * NBYTES)
        for length in (10**6, 10**8):
            assert agreement(length, 1000, algorithm=algorithm) == (10, 10 * 16)
    of = {"algorithm": "hierarchical", "nan": "abstain"}
    assert agreement(10**6, SHORT_ABOVE, **of) == (63, 63 * PREAMBLE)
    assert agreement(10**6, SHORT_ABOVE, **of, first=True) == (63, 63 * NBYTES)
    assert agreement(10**6, 1000, **of) == (10, 10 * 16)
    of["nan"] = "raise"  # and all are told whether any rank has NaNs
    assert agreement(10**6, SHORT_ABOVE, **of) == (2 * 63, 63 * (PREAMBLE + 8))
    assert agreement(10**6, 1000, **of) == (20, 10 * 16 + 10)


@pytest.mark.parametrize("size", [8, 512, 16_384])
@pytest.mark.parametrize("length", [10**6, 10**8, 10**10])
@pytest.mark.parametrize("policies", [{}, {"zeros": "abstain", "ties": "zero"}])
def test_memory_is_bounded_at_any_size(size, length, policies):
    levels = [[r // 8 for r in range(size)], [r // 128 for r in range(size)]]
    plane = length // 8
    for algorithm in ("allgather", "alltoall", "hierarchical"):
        most = plane + (64 << 20)
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
