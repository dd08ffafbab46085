"""A share of the ranks takes part in a step. Every compressor: ranks/test_every_compressor.py."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import reference as ref
import torch

import mpisign
from mpisign import simulation
from mpisign.compressors import Compression
from mpisign.errors import DisagreementError
from mpisign.exchange.participation import participants

SEED = 5


def test_the_draw():
    for size in (1, 2, 3, 4, 5, 10, 33):
        for share in (0.01, 0.25, 0.5, 0.9):
            for step in (0, 1, 2**40):
                drawn = participants(share, SEED, step, size)
                expected = ref.participants(share, SEED, step, size)
                assert (list(range(size)) if drawn is None else drawn) == expected
    assert len(participants(0.5, SEED, 0, 5)) == 3  # half up
    often = Counter(r for step in range(400) for r in participants(0.5, SEED, step, 4))
    assert all(160 < n < 240 for n in often.values()) and sum(often.values()) == 800


def gradient(rank, step):
    x = np.random.default_rng([rank, step]).standard_normal((2, 40)).astype(np.float32)
    return torch.from_numpy(x)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("computes", [False, True])
def test_averages_by_every_rank_that_is_there(overlap, computes):
    """Whole, and the vector in 16 bits; whether or not absent ranks compute for nothing."""
    steps, size, warm_up = 5, 4, 1

    def run(comm, compression):
        ps = [torch.nn.Parameter(torch.zeros(40)), torch.nn.Parameter(torch.zeros(40, 40))]
        named = [("vector", ps[0]), ("matrix", ps[1])]
        sgd = torch.optim.SGD(ps, lr=1.0)
        options = {"participation": 0.5, "seed": SEED, "warmup_steps": warm_up, "overlap": overlap}
        optimizer = mpisign.DistributedOptimizer(
            sgd, named, comm=comm, compression=compression, **options
        )
        handed = []
        for step in range(steps):
            optimizer.zero_grad()
            there = mpisign.takes_part(optimizer)
            drawn = ref.participants(0.5, SEED, step, size)
            assert there == (step < warm_up or comm.rank in drawn)
            if there or computes:
                g = gradient(comm.rank, step)
                ((ps[0] * g[0]).sum() + (ps[1] * g[1]).sum()).backward()
            optimizer.step()
            handed.append([p.grad.clone() for p in ps])
        return handed, [p.detach().clone() for p in ps]

    for compression in ("none", "ef_sign"):
        ranks = simulation.run(size, run, compression, timeout=20)
        for step in range(steps):
            there = ref.participants(0.5, SEED, step, size) if step >= warm_up else range(size)
            mean = torch.stack([gradient(r, step) for r in there]).mean(0)
            near = 0.02 if compression == "ef_sign" else 1e-6  # of 16 bits
            assert all(torch.allclose(h[step][0], mean[0], near, near) for h, _ in ranks)
            if compression == "none":
                assert torch.allclose(ranks[0][0][step][1], mean[1].expand(40, 40), atol=1e-6)
        assert all(
            torch.equal(a, b) for _, ps in ranks for a, b in zip(ps, ranks[0][1], strict=True)
        )


def test_residuals_of_ef_sign_go_stale_and_are_sent_later():
    """What a rank still owes waits until it is drawn again; nothing of it is lost."""
    size, steps, d = 4, 40, 64

    def run(comm):
        p = torch.nn.Parameter(torch.zeros(d))
        optimizer = torch.optim.SGD([p], lr=0.1)
        mpisign.DistributedOptimizer(
            optimizer, comm=comm, compression="ef_sign", skip=None, participation=0.5, seed=SEED
        )
        owed = []
        for step in range(steps):
            p.grad = gradient(comm.rank, step)[0].repeat(2)[:d]
            optimizer.step()
            state = optimizer.state_dict()["mpisign"]["state"].get("0", {})
            owed.append(state.get("residual", torch.zeros(d)).clone())
        return owed, p.detach()

    ranks = simulation.run(size, run, timeout=20)
    drawn = [ref.participants(0.5, SEED, step, size) for step in range(steps)]
    sent = torch.zeros(d)
    for step, there in enumerate(drawn):
        for r in range(size):
            before = ranks[r][0][step - 1] if step else torch.zeros(d)
            after = ranks[r][0][step]
            if r not in there:
                assert torch.equal(before, after)
                continue
            g = gradient(r, step)[0].repeat(2)[:d]
            sent += (0.1 * g + before - after) / len(there)
    assert torch.allclose(ranks[0][1], -sent, atol=1e-4)
    assert len({tuple(there) for there in drawn}) > 3


def test_what_does_not_fit():
    def wrap(**options):
        sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(3))], lr=1.0)
        mpisign.DistributedOptimizer(sgd, **options)

    for share in (0, -0.5, 1.5, "half", float("nan"), None):
        with pytest.raises(ValueError, match=r"participation must be a share .* in \(0, 1\], got"):
            wrap(participation=share)
    for compression in ("onebit", "robust", "detox"):
        with pytest.raises(ValueError, match="goes with compressors that vote or take means"):
            wrap(participation=0.5, compression=compression)
    with pytest.raises(ValueError, match="cannot be combined with byzantine_f"):
        wrap(participation=0.5, byzantine_f=1)
    with pytest.raises(TypeError, match="takes_part: optimizer must be one"):
        mpisign.takes_part(torch.optim.SGD([torch.nn.Parameter(torch.zeros(3))], lr=1.0))
    with pytest.raises(ValueError, match="local_lr must be None where local_steps=1"):
        Compression.ef_sparsign(local_lr=0.1)
    with pytest.raises(ValueError, match="local_lr must be a positive number, got 0"):
        Compression.ef_sparsign(local_steps=2, local_lr=0)
    p = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match="local_lr goes with maximize=False"):
        mpisign.DistributedOptimizer(
            torch.optim.SGD([p], lr=1.0, maximize=True),
            compression=Compression.ef_sparsign(local_steps=2, local_lr=0.1),
        )

    def differ(comm):
        p = torch.nn.Parameter(torch.zeros(3))
        sgd = torch.optim.SGD([p], lr=1.0)
        share = 0.5 if comm.rank else 0.4
        mpisign.DistributedOptimizer(sgd, comm=comm, participation=share)
        p.grad = torch.ones(3)
        with pytest.raises(DisagreementError, match="participation .rank 0 against ranks 1-2"):
            sgd.step()

    simulation.run(3, differ, timeout=20)


def test_in_a_study():
    """Absent ranks compute no gradient, and send no bits that count."""
    from mpisign.experiments import run
    from mpisign.experiments.cell import Cell

    cell = {
        "task": "quadratic",
        "task_options": {"dimension": 50},
        "lr": 0.1,
        "steps": 4,
        "ranks": 4,
    }
    keys = set()
    for compressor, bits in (("sign", 0.5), ("none", 16), ("ef_sign", 0.5 + 16 / 50)):
        half = Cell(compressor=compressor, participation=0.5, **cell)
        assert run.simulated(half)["bits"] == pytest.approx(bits, abs=1e-3), compressor
        keys |= {half.key, Cell(compressor=compressor, **cell).key}
    assert len(keys) == 6
