"""What ranks that reduce for themselves send each other: checked, and short where it is sparse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_every_compressor import gradients, on_ranks, parameters, started, take
from worlds import SIZE

import mpisign
from mpisign import simulation
from mpisign.compressors import EFSign, EFSparsign, OneBit, Signum, Sparsign, TernGrad
from mpisign.errors import CollectiveError, WireError


class Liar(EFSign):
    """Rank 1 sends what no rank that follows the rules does."""

    lies = (
        ("scale", lambda out, scales: scales.__setitem__(0, -1.0), "a scale that is no number"),
        ("nan", lambda out, scales: scales.__setitem__(-1, np.nan), "a scale that is no number"),
        ("padding", lambda out, scales: out.__setitem__(2, 0xFF), "planes with padding not 0"),
    )
    lie = None

    def pack(self, grads, states, out, offsets, context):
        nans = super().pack(grads, states, out, offsets, context)
        if context.rank == 1:
            Liar.lie(out, context.scales)
        return nans


@pytest.mark.parametrize("name, lie, message", Liar.lies, ids=lambda x: x if str(x) == x else "")
def test_what_a_liar_sends_is_refused_by_all(name, lie, message, monkeypatch):
    monkeypatch.setattr(Liar, "lie", staticmethod(lie))

    def train(comm):
        ps = parameters()
        optimizer = started(ps, comm, Liar())
        # WireError; CollectiveError where another rank's notice is read first.
        with pytest.raises((WireError, CollectiveError), match=f"rank 1 sent {message}"):
            take(optimizer, ps, [torch.ones_like(x) for x in ps], 0.1)
        assert all((x == 0.5).all() for x in ps)
        comm.free()

    on_ranks("mpi" if SIZE > 1 else 3, train)


def test_few_votes_take_few_bytes():
    if SIZE > 1:
        pytest.skip("ranks are threads here")
    n, p = 200_000, 3
    cases = [(Sparsign(budget=0.05), 0.339), (EFSign(), 1), (TernGrad(), 2)]
    # A momentum of one size all over: those that vote are drawn.
    for compressor, bits in [*cases, (Signum(density=0.01), 0.091)]:
        mpisign.stats().reset()

        def train(comm, compressor=compressor):
            x = torch.nn.Parameter(torch.zeros(n))
            optimizer = started([x], comm, compressor)
            take(optimizer, [x], [torch.ones(n) if comm.rank else -torch.ones(n)], 0.1)

        simulation.run(p, train)
        sent = mpisign.stats().as_dict()["exchange"]["sent"] - p * (p - 1) * 512  # headers
        used = 8 * sent / (n * p * (p - 1))
        if isinstance(compressor, TernGrad):  # all of one size: every coordinate is sent
            assert used < 1.01
        else:
            assert bits * 0.98 < used < bits * 1.02


def test_a_shared_residual_that_differs_is_found(monkeypatch):
    monkeypatch.setenv("MPISIGN_CHECK_EVERY", "1")
    if SIZE > 1:
        pytest.skip("ranks are threads here")

    def train(comm):
        ps = parameters()
        optimizer = started(ps, comm, EFSparsign())
        ones = [torch.ones_like(x) for x in ps]
        take(optimizer, ps, ones, 0.1)
        take(optimizer, ps, ones, 0.1)
        exchange = optimizer.mpisign.exchange
        if comm.rank == 1:
            exchange.slots[3].state["residual"][0, 1] = -5
        take(optimizer, ps, ones, 0.1)
        with pytest.raises(CollectiveError, match="replicas differ .* against rank 1"):
            take(optimizer, ps, ones, 0.1)

    simulation.run(3, train)


@pytest.mark.parametrize("compressor", [EFSparsign(), OneBit(block=256), EFSign()], ids=repr)
def test_a_rank_that_comes_later_is_given_what_all_share(compressor, monkeypatch):
    monkeypatch.setenv("MPISIGN_CHECK_EVERY", "1")
    if SIZE > 1:
        pytest.skip("ranks are threads here")
    kept = {}

    def begin(comm):
        ps = parameters()
        optimizer = started(ps, comm, compressor)
        for step in (0, 3):
            take(optimizer, ps, gradients(2, step, False)[comm.rank], 0.1)
        kept[comm.rank] = [x.detach().clone() for x in ps], optimizer.state_dict()

    def go_on(comm):
        values, state = kept[min(comm.rank, 1)]
        ps = [torch.nn.Parameter(x.clone()) for x in values]
        optimizer = started(ps, comm, compressor)
        if comm.rank == 2:  # it knows how far the others are, and nothing of what they remember
            state = state | {"mpisign": {"steps": 2, "state": {}}}
        optimizer.load_state_dict(state)
        for step in (4, 5):
            take(optimizer, ps, gradients(3, step, False)[comm.rank], 0.1)
        members = optimizer.mpisign.exchange.slots
        return [m.state[key].clone() for m in members for key in compressor.shared]

    simulation.run(2, begin, timeout=20)
    shared = simulation.run(3, go_on, timeout=20)
    assert all(torch.equal(a, b) for one in shared for a, b in zip(one, shared[0], strict=True))
    assert len(shared[0]) == len(compressor.shared) * 6
