"""Plain averages in the first steps, then votes, on ranks that are threads."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import mpisign
from mpisign import simulation
from mpisign.compressors import COMPRESSORS, EFSparsign, OneBit, Signum
from mpisign.errors import CollectiveError, NaNError

N, STEPS, LR = 3, 6, 0.5
EXACT = Signum(momentum=0.5, zeros="abstain", ties="zero")


def gradient(step, rank, n=40):
    return np.random.default_rng([step, rank]).standard_normal(n).astype(np.float32)


def wrapped(comm, compression=EXACT, **options):
    p = torch.nn.Parameter(torch.zeros(40))
    optimizer = torch.optim.SGD([p], lr=LR)
    options = {"warmup_steps": N, **options}
    mpisign.DistributedOptimizer(optimizer, comm=comm, compression=compression, **options)
    return p, optimizer


def walk(comm, p, optimizer, steps):
    handed = []
    for step in steps:
        g = torch.from_numpy(gradient(step, comm.rank).copy())
        optimizer.zero_grad()
        (p * g).sum().backward()
        optimizer.step()
        handed.append(p.grad.clone())
    return handed


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("overlap", [False, True])
def test_averages_then_votes_with_the_momentum_of_all(size, overlap):
    def run(comm):
        p, optimizer = wrapped(comm, overlap=overlap)
        handed = walk(comm, p, optimizer, range(STEPS))
        assert optimizer.state_dict()["mpisign"]["steps"] == STEPS
        return handed

    momenta = np.zeros((size, 40), dtype=np.float32)
    wanted = []
    for step in range(STEPS):
        grads = np.stack([gradient(step, r) for r in range(size)])
        momenta = np.float32(0.5) * momenta + np.float32(0.5) * grads
        wanted.append(grads.mean(0) if step < N else np.sign(np.sign(momenta).sum(0)))
    for handed in simulation.run(size, run, timeout=20):
        for step, (g, w) in enumerate(zip(handed, wanted, strict=True)):
            assert np.allclose(g, w, rtol=0, atol=1e-6 if step < N else 0), step


@pytest.mark.parametrize("compression", ["lion", "onebit", "ef_sign", "robust", "noisy_sign"])
def test_a_run_goes_on_in_the_middle_of_warm_up(compression):
    """Bit for bit, replicas alike, whatever is kept."""

    def run(comm):
        p, optimizer = wrapped(comm, compression, skip=None)
        walk(comm, p, optimizer, range(N - 1))
        again, other = wrapped(comm, compression, skip=None)
        with torch.no_grad():
            again.copy_(p)
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        rest = range(N - 1, STEPS)
        first, second = walk(comm, p, optimizer, rest), walk(comm, again, other, rest)
        assert all(map(torch.equal, first, second)) and torch.equal(p, again)
        return p.detach()

    first, *others = simulation.run(3, run, timeout=20)
    assert all(torch.equal(first, x) for x in others)


def test_momenta_that_are_the_means():
    """1-bit Adam's first stage: m of the mean, no residual before the first compression."""

    def run(comm):
        p, optimizer = wrapped(comm, OneBit(momentum=0.5), skip=None)
        walk(comm, p, optimizer, range(N))
        return optimizer.state_dict()["mpisign"]["state"]["0"]

    m = np.zeros(40, dtype=np.float32)
    for step in range(N):
        m = 0.5 * m + 0.5 * np.mean([gradient(step, r) for r in range(2)], axis=0)
    for state in simulation.run(2, run, timeout=20):
        assert list(state) == ["momentum"] and np.allclose(state["momentum"], m, atol=1e-6)


def test_all_compressors_and_what_is_skipped():
    def run(comm, compression):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Embedding(60, 20), torch.nn.Linear(20, 60))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        mpisign.DistributedOptimizer(
            optimizer, comm=comm, compression=compression, warmup_steps=2, bucket_size=700
        )
        for step in range(4):
            optimizer.zero_grad()
            net(torch.tensor([step, 5 + comm.rank])).logsumexp(-1).sum().backward()
            own = [p.grad.clone() for p in net.parameters()]
            optimizer.step()
            if step < 2:
                steps[step, comm.rank] = own, [p.grad.clone() for p in net.parameters()]
        return [p.detach() for p in net.parameters()]

    for name, kind in COMPRESSORS.items():
        c = kind(placement=((0,), (1,)), redundancy=1) if name == "detox" else kind()
        steps: dict = {}
        first, second = simulation.run(2, run, c, timeout=20)
        assert all(map(torch.equal, first, second)), name
        for step in range(2):
            (a, got), (b, also) = steps[step, 0], steps[step, 1]
            for x, y, g, h in zip(a, b, got, also, strict=True):
                assert torch.equal(g, h) and torch.allclose(g, (x + y) / 2, atol=1e-7), name


def test_local_steps_begin_after_it():
    def run(comm):
        p, optimizer = wrapped(comm, EFSparsign(local_steps=2), skip=None)
        handed = walk(comm, p, optimizer, range(N + 1))
        assert optimizer.state_dict()["mpisign"]["local"] == 1
        return handed

    first, second = simulation.run(2, run, timeout=20)
    assert all(map(torch.equal, first[:N], second[:N])) and not torch.equal(first[N], second[N])


def test_what_does_not_fit_is_told_to_all():
    def differ(comm):
        p, optimizer = wrapped(comm, warmup_steps=N + comm.rank // 2)
        with pytest.raises(CollectiveError, match="warmup_steps") as error:
            walk(comm, p, optimizer, range(1))
        return str(error.value)

    def nan(comm):
        p, optimizer = wrapped(comm)
        p.grad = torch.full((40,), torch.nan if comm.rank == 1 else 1.0)
        with pytest.raises(NaNError, match="40 on rank 1") as error:
            optimizer.step()
        assert (p == 0).all()
        return str(error.value)

    for function in (differ, nan):
        assert len(set(simulation.run(3, function, timeout=20))) == 1
    for wrong in (-1, 1.5, "3"):
        with pytest.raises(ValueError, match="warmup_steps must be a number of steps from 0"):
            wrapped(None, warmup_steps=wrong)
