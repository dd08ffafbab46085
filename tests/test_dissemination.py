"""Whether all ranks hold the same bytes: simulated ranks, one of which differs anywhere."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from launchers import on_ranks

import mpisign
from mpisign import simulation
from mpisign.engine import engine
from mpisign.engine.dissemination import all_same
from mpisign.errors import CollectiveTimeout, DisagreementError, NaNError

WORD = np.frombuffer(b"\0" + bytes(range(1, 16)), dtype=np.uint8)
SIZES = [1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 31, 33, 64, 65, 100]


def words_of(odd, at, value):
    """Each rank's word: those in ``odd`` have another byte ``at``."""
    other = WORD.copy()
    other[at] = value
    return lambda rank: other if rank in odd else WORD


def asked(comm, word_of, sent):
    """One rank's answer; ``sent``: (rank, to, bytes) of every message."""
    transport = comm.engine.transport
    exchange = transport._exchange

    def counted(sends, recvs, tag):
        sent.extend((comm.rank, to, len(part)) for to, part in sends)
        return exchange(sends, recvs, tag)

    transport._exchange = counted
    try:
        return comm.engine.submit("asked", lambda w: all_same(w, word_of(w.rank))).wait()
    finally:
        transport._exchange = exchange


def answers(size, word_of):
    sent = []
    found = simulation.run(size, asked, word_of, sent)
    rounds = math.ceil(math.log2(size))
    assert len(sent) == size * rounds and all(n == 16 for _, _, n in sent)
    assert len({(a, b) for a, b, _ in sent}) == len(sent)  # never the same rank twice
    assert len(set(found)) == 1  # one answer for all
    return found[0]


@pytest.mark.parametrize("size", SIZES)
def test_all_the_same(size):
    assert answers(size, lambda rank: WORD) is True


@pytest.mark.parametrize("size", [s for s in SIZES if s > 1])
def test_one_that_differs_anywhere(size):
    ranks = range(size) if size < 20 else (0, 1, size // 3, size // 2, size - 2, size - 1)
    for rank in ranks:
        assert answers(size, words_of({rank}, 15, 99)) is False


@pytest.mark.parametrize("size", [2, 3, 5, 8, 33])
def test_who_says_so_from_the_start(size):
    assert answers(size, words_of({size // 2}, 0, 1)) is False
    assert answers(size, words_of(set(range(size)), 0, 1)) is False  # all alike, and all say so
    halves = set(range(0, size, 2))
    assert answers(size, words_of(halves, 7, 0)) is False


@pytest.mark.slow
@pytest.mark.many
def test_a_thousand_and_more():
    odd = [set(), {0}, {511}, {1023}, {3, 700}]

    def ask(comm):
        return [asked(comm, words_of(ranks, 3, 0), []) for ranks in odd]

    assert simulation.run(1024, ask) == [[True, False, False, False, False]] * 1024


def several_votes(comm):
    """A vote, ranks that disagree, a NaN, and a vote again."""
    x = np.arange(-500.0, 500.0, dtype=np.float32).repeat(40)
    first = comm.majority_vote(x, algorithm="alltoall")
    with pytest.raises(DisagreementError, match=f"seed .*rank {comm.size - 1}: 2"):
        comm.majority_vote(x, seed=1 + (comm.rank == comm.size - 1))
    if comm.rank == comm.size // 2:
        x[77] = np.nan
    with pytest.raises(NaNError, match=f"got 1 on rank {comm.size // 2} "):
        comm.majority_vote(x, algorithm="alltoall")
    x[77] = 1
    again = comm.majority_vote(x, algorithm="hierarchical")
    return first[:20000].max(), again[21000:].min(), again[77]


@pytest.mark.parametrize("size", [2, 3, 5, 6, 9])
def test_agreement_with_a_threshold_of_one(size, monkeypatch):
    lower_threshold(monkeypatch)
    nodes = [r // 2 for r in range(size)]
    assert set(simulation.run(size, several_votes, nodes=nodes)) == {(-1.0, 1.0, 1.0)}


def lower_threshold(monkeypatch):
    """Any two ranks are many."""
    from mpisign.collectives import majority_vote

    for module in (engine, majority_vote):
        monkeypatch.setattr(module, "SHORT_ABOVE", 1)


def test_a_rank_that_does_not_come_is_named_by_all(monkeypatch):
    lower_threshold(monkeypatch)

    def vote(comm):
        if comm.rank == 5:
            return "not here"
        with pytest.raises(CollectiveTimeout) as error:
            comm.majority_vote(np.ones(100, dtype=np.float32))
        return error.value.ranks

    found = simulation.run(11, vote, timeout=1.0)
    assert found.pop(5) == "not here" and all(missing == (5,) for missing in found)


@pytest.mark.parametrize("n", [3, *(pytest.param(n, marks=pytest.mark.many) for n in (2, 5))])
def test_over_mpi(n):
    pytest.importorskip("mpi4py.MPI", reason="not installed: run scripts/setup")
    assert on_ranks(n, __file__).count("agreed") == n


if __name__ == "__main__":
    patch = pytest.MonkeyPatch()
    lower_threshold(patch)
    over_mpi = mpisign.Communicator("mpi")
    for who in range(over_mpi.size):
        assert asked(over_mpi, lambda rank: WORD, []) is True
        assert asked(over_mpi, words_of({who}, 9, 0), []) is False
    assert several_votes(over_mpi) == (-1.0, 1.0, 1.0)
    sys.stdout.write("agreed\n")
