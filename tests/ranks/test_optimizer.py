"""DistributedOptimizer over MPI: replicas, references, parameters without gradients, state."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from worlds import RANK, SIZE, same_on_all_ranks, several

import mpisign
from mpisign.compressors import Sign, Signum
from mpisign.errors import CollectiveError, DisagreementError, NaNError


def model(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(7, 13), torch.nn.ReLU(), torch.nn.Linear(13, 3))


def one_parameter(n, **options):
    """(a parameter of n zeros, its optimizer), which moves by the vote."""
    p = torch.nn.Parameter(torch.zeros(n))
    optimizer = torch.optim.SGD([p], lr=1.0)
    mpisign.DistributedOptimizer(optimizer, **options)
    return p, optimizer


def parameters(net):
    return [p.detach().numpy() for p in net.parameters()]


def train(net, optimizer, steps, first=0):
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(1000 * step + RANK)
        x = torch.randn(4, 7, generator=generator)
        optimizer.zero_grad()
        (net(x) - x[:, :3]).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize(
    "compression",
    [
        "none",
        "sign",
        "signum",
        Signum(zeros="abstain", ties="zero"),
        Signum(momentum_dtype="bfloat16"),
        Sign(zeros="positive"),
    ],
)
@pytest.mark.parametrize("algorithm", ["allgather", "alltoall"])
def test_replicas_are_bit_identical_after_50_steps(compression, algorithm):
    net = model()
    before = [p.copy() for p in parameters(net)]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, weight_decay=1e-3)
    mpisign.DistributedOptimizer(
        optimizer, net.named_parameters(), compression=compression, algorithm=algorithm
    )
    train(net, optimizer, 50)
    assert same_on_all_ranks(*parameters(net))
    assert all(not np.array_equal(a, b) for a, b in zip(before, parameters(net), strict=True))


def test_signum_is_its_equation():
    # Every rank can compute every rank's gradients: x -= lr (V + wd x), V = sign(sum sign(m)).
    lr, decay, beta, steps = 0.05, 0.1, 0.8, 5
    p = torch.nn.Parameter(torch.linspace(-1, 1, 101))
    optimizer = torch.optim.SGD([p], lr=lr, weight_decay=decay)
    mpisign.DistributedOptimizer(
        optimizer, compression=Signum(momentum=beta, zeros="abstain", ties="zero")
    )
    x = np.linspace(-1, 1, 101, dtype=np.float32)
    x = torch.linspace(-1, 1, 101).numpy().copy()
    m = np.zeros((SIZE, 101), dtype=np.float32)
    for step in range(steps):
        grads = np.random.default_rng(step).standard_normal((SIZE, 101)).astype(np.float32)
        p.grad = torch.from_numpy(grads[RANK].copy())
        optimizer.step()
        m = np.float32(beta) * m + np.float32(1 - beta) * grads
        votes = np.sign(np.sign(m).sum(axis=0))
        x = x - np.float32(lr) * (votes + np.float32(decay) * x)
        assert np.array_equal(p.grad.numpy(), votes + np.float32(decay) * 0)
        assert np.allclose(p.detach().numpy(), x, rtol=0, atol=1e-6)


def test_none_is_the_mean():
    p = torch.nn.Parameter(torch.zeros(10))
    optimizer = torch.optim.SGD([p], lr=1.0)
    mpisign.DistributedOptimizer(optimizer, compression="none")
    p.grad = torch.full((10,), float(RANK))
    optimizer.step()
    assert torch.equal(p.grad, torch.full((10,), (SIZE - 1) / 2))


@pytest.mark.parametrize("compression", ["none", Sign(zeros="abstain", ties="zero")])
def test_parameters_without_a_gradient(compression):
    a, b, c = (torch.nn.Parameter(torch.zeros(n)) for n in (3, 9, 17))
    optimizer = torch.optim.SGD([a, b, c], lr=1.0, weight_decay=0.5)
    mpisign.DistributedOptimizer(optimizer, compression=compression)
    a.grad = torch.ones(3)
    if RANK == SIZE - 1:
        b.grad = -torch.ones(9)  # elsewhere unused
    optimizer.step()
    assert (a == -1).all()
    assert (b == (1 / SIZE if compression == "none" else 1)).all()
    assert c.grad is None and (c == 0).all()
    assert same_on_all_ranks(*(p.detach().numpy() for p in (a, b, c)))


def test_gradients_that_are_not_contiguous_and_halves():
    xs = [np.random.default_rng(r).standard_normal((6, 5)) for r in range(SIZE)]
    expected = torch.from_numpy(np.sign(sum(np.sign(x) for x in xs)))
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        p = torch.nn.Parameter(torch.zeros(6, 5, dtype=dtype))
        optimizer = torch.optim.SGD([p], lr=1.0)
        mpisign.DistributedOptimizer(optimizer, compression=Sign(ties="zero"))
        p.grad = torch.from_numpy(xs[RANK]).to(dtype).t().contiguous().t()
        optimizer.step()
        assert torch.equal(p.grad.double(), expected)


def test_a_scheduler_and_a_second_parameter_group_work():
    net = model()
    groups = [{"params": net[0].parameters()}, {"params": net[2].parameters(), "lr": 0.5}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    assert mpisign.DistributedOptimizer(optimizer, net.named_parameters()) is optimizer
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    before = net[2].weight.detach().clone()
    train(net, optimizer, 1)
    scheduler.step()
    assert torch.allclose((net[2].weight - before).abs(), torch.tensor(0.5), atol=1e-6)
    assert optimizer.param_groups[0]["lr"] == 0.05


@several
def test_models_that_differ_are_found_before_anything_moves():
    net = torch.nn.Linear(3, 4 if RANK else 5)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    mpisign.DistributedOptimizer(optimizer, net.named_parameters())
    net(torch.ones(1, 3)).sum().backward()
    before = net.weight.detach().clone()
    with pytest.raises(DisagreementError, match="ranks disagree on names, shapes or dtypes"):
        optimizer.step()
    assert torch.equal(before, net.weight)


def test_bad_arguments():
    p = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([p], lr=1.0)
    with pytest.raises(TypeError, match="optimizer must be a torch.optim.Optimizer, got int"):
        mpisign.DistributedOptimizer(3)
    with pytest.raises(ValueError, match="compression must be .* got 'zip'"):
        mpisign.DistributedOptimizer(optimizer, compression="zip")
    for wrong, meant in (("SignMuon", "did you mean 'muon'"), ("onebitadam", "mpisign.optim.OneB")):
        with pytest.raises(ValueError, match=f"got '{wrong}' .{meant}"):
            mpisign.DistributedOptimizer(optimizer, compression=wrong)
    with pytest.raises(ValueError, match="must name every parameter"):
        mpisign.DistributedOptimizer(optimizer, [])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        mpisign.DistributedOptimizer(torch.optim.SGD([p], lr=1.0, momentum=0.9))
    warned = [w for w in caught if "momentum of its own" in str(w.message)]
    assert len(warned) == (RANK == 0), "once a job"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        adam = mpisign.DistributedOptimizer(torch.optim.AdamW([p]), compression="lion")
    assert len([w for w in caught if "AdamW divides" in str(w.message)]) == (RANK == 0)
    mpisign.unwrap(adam)
    with pytest.raises(ValueError, match="OneBitAdam, which exchanges by itself"):
        mpisign.DistributedOptimizer(mpisign.optim.OneBitAdam([p]))
    with pytest.raises(ValueError, match="momentum must be in"):
        Signum(momentum=1.0)
    mpisign.DistributedOptimizer(optimizer)
    with pytest.raises(ValueError, match="DistributedOptimizer already"):
        mpisign.DistributedOptimizer(optimizer)
    p.grad = torch.ones(3)
    with pytest.raises(CollectiveError, match="a closure computes gradients"):
        optimizer.step((lambda: 0.0) if RANK == SIZE - 1 else None)
    optimizer.step(None)
    assert (p == -1).all()
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(2))]})
    with pytest.raises(CollectiveError, match="parameters are not those"):
        optimizer.step()


def test_a_step_that_calls_its_base_class_votes_once():
    class Mine(torch.optim.SGD):
        def step(self, closure=None):
            return super().step(closure)

    torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    p = torch.nn.Parameter(torch.zeros(3))
    optimizer = Mine([p], lr=1.0)
    mpisign.DistributedOptimizer(optimizer, compression=Signum(momentum=0.5))
    mpisign.stats().reset()
    for step in range(3):
        optimizer.zero_grad(set_to_none=step == 1)
        p.grad = torch.ones(3) if p.grad is None else p.grad.add_(1)
        optimizer.step()
    assert (p == -3).all() and mpisign.stats().as_dict()["pack"]["calls"] == 3


def test_nan_leaves_no_trace_in_the_momentum():
    p, optimizer = one_parameter(4)
    p.grad = torch.ones(4)
    if RANK == 0:
        p.grad[0] = float("nan")
    with pytest.raises(NaNError):
        optimizer.step()
    p.grad = torch.ones(4)
    optimizer.step()
    assert (p == -1).all()


def test_a_state_that_does_not_fit_is_refused():
    p, optimizer = one_parameter(4)
    p.grad = torch.ones(4)
    optimizer.step()
    state = optimizer.state_dict()
    state["mpisign"]["state"]["0"]["momentum"] = torch.zeros(5)
    with pytest.raises(ValueError, match=r"momentum of '0' must have shape \(4,\), got \(5,\)"):
        optimizer.load_state_dict(state)
