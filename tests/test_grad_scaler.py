"""torch.amp.GradScaler: steps as without it, and all ranks skip, and lower the scale, alike."""

from __future__ import annotations

import copy

import pytest
import torch

import mpisign
from mpisign import optim, simulation
from mpisign.errors import CollectiveError, DisagreementError

SCALE = 1024.0
BAD = {3: (1, float("inf")), 6: (0, float("nan"))}  # step: the rank that overflows, and by what
LOCAL = mpisign.Compression.ef_sparsign(local_steps=2, budget_local=4.0)


def net():
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Linear(9, 7), torch.nn.Tanh(), torch.nn.Linear(7, 2))


def plain(model, comm, **how):
    sgd = torch.optim.SGD(model.parameters(), lr=0.01)
    return mpisign.DistributedOptimizer(sgd, model.named_parameters(), comm=comm, **how)


def moments(name, **how):
    return lambda model, comm: getattr(optim, name)(model.named_parameters(), comm=comm, **how)


FRONTS = {
    "sign": lambda m, c: plain(m, c, compression="sign"),
    "signum": lambda m, c: plain(m, c, compression="signum", warmup_steps=2),
    "lion": lambda m, c: plain(m, c, compression="lion"),
    "ef_sign": lambda m, c: plain(m, c, compression="ef_sign", skip=None),
    "onebit": lambda m, c: plain(m, c, compression="onebit", skip=None),
    "local": lambda m, c: plain(m, c, compression=LOCAL),
    "part": lambda m, c: plain(m, c, compression="signum", participation=0.5),
    "fused": lambda m, c: mpisign.DistributedOptimizer(
        torch.optim.Adam(m.parameters(), lr=0.01, fused=True), comm=c, compression="signum"
    ),
    "OneBitAdam": moments("OneBitAdam", freeze_step=2),
    "ZeroOneAdam": moments("ZeroOneAdam", var_freeze_step=3),
    "OneBitLamb": moments("OneBitLamb", freeze_step=2),
}


def loss_of(model, rank, step, dtype=None):
    x = torch.randn(5, 9, generator=torch.Generator().manual_seed(100 * step + rank))
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        y = model(x)
    return y.float().square().sum()


def trained(comm, front, *, scaled, unscale=False, steps=8, bad=BAD, dtype=None):
    """The parameters after each step that counts, the states, and the scales."""
    model = net()
    optimizer = FRONTS[front](model, comm)
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE, growth_interval=2, enabled=scaled)
    history, scales = [], []
    for step in range(steps):
        who, what = bad.get(step, (None, 1.0))
        if who is not None and not scaled:
            continue
        optimizer.zero_grad()
        loss = loss_of(model, comm.rank, step, dtype)
        spoils = who == comm.rank or front == "part"  # else an absent rank's would not count
        scaler.scale(loss * (what if spoils else 1.0)).backward()
        if unscale:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1e6)
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
        if who is None:
            history.append([p.detach().clone() for p in model.parameters()])
    return history, copy.deepcopy(optimizer.state_dict()), scales


def same(a, b, where=""):
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for k in a:
            same(a[k], b[k], f"{where}.{k}")
    elif isinstance(a, list | tuple):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            same(x, y, f"{where}.{i}")
    else:
        assert a == b, (where, a, b)


@pytest.mark.parametrize(
    "front, size", [*((f, 2) for f in FRONTS), ("signum", 1), ("part", 3), ("OneBitAdam", 3)]
)
def test_steps_as_without(front, size):
    """Steps that one rank's inf or NaN spoils leave nothing behind, in no rank's state."""
    bad = {s: (r % size, x) for s, (r, x) in BAD.items()}
    unscale = front in ("lion", "OneBitAdam") or (front, size) == ("signum", 2)

    def train(comm):
        want, state, _ = trained(comm, front, scaled=False, bad=bad)
        got, left, scales = trained(comm, front, scaled=True, bad=bad, unscale=unscale)
        same(got, want, "parameters")
        same(left, state, "state")
        return scales

    # Two clean steps double it, a spoilt one halves it.
    expected = [1024.0, 2048.0, 2048.0, 1024.0, 1024.0, 2048.0, 1024.0, 1024.0]
    assert simulation.run(size, train) == [expected] * size


@pytest.mark.parametrize("front, dtype", [("ef_sign", torch.float16), ("sign", torch.bfloat16)])
def test_resume(front, dtype):
    """Scaler and optimizer saved and loaded: the steps that follow are the same, under autocast."""

    def train(comm):
        ends = []
        for resumed in (False, True):
            model = net()
            optimizer = FRONTS[front](model, comm)
            scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=2)
            for step in range(6):
                if resumed and step == 3:
                    saved = copy.deepcopy([x.state_dict() for x in (model, optimizer, scaler)])
                    model = net()
                    optimizer = FRONTS[front](model, comm)
                    scaler = torch.amp.GradScaler("cpu", growth_interval=2)
                    for x, state in zip((model, optimizer, scaler), saved, strict=True):
                        x.load_state_dict(state)
                optimizer.zero_grad()
                for part in range(2):  # gradients add up
                    loss = loss_of(model, comm.rank, 10 * step + part, dtype)
                    spoils = step == 2 and part == 0 and comm.rank == 0
                    scaler.scale(loss * (float("inf") if spoils else 1.0)).backward()
                scaler.step(optimizer)
                scaler.update()
            ends.append([p.detach().clone() for p in model.parameters()])
        same(*ends)
        return [p.tolist() for p in ends[0]], scaler.state_dict()

    a, b = simulation.run(2, train)
    assert a == b


def test_mistakes():
    """On all ranks alike, and a step that follows is as if nothing had been."""

    def error_of(kind, call):
        with pytest.raises(kind) as caught:
            call()
        return str(caught.value)

    def train(comm):
        said = []
        model = net()
        optimizer = plain(model, comm, compression="signum")
        scaler = torch.amp.GradScaler("cpu", init_scale=SCALE * (1 + comm.rank))
        scaler.scale(loss_of(model, comm.rank, 0)).backward()
        said.append(error_of(DisagreementError, lambda: scaler.step(optimizer)))
        optimizer.zero_grad()
        scaler = torch.amp.GradScaler("cpu", init_scale=SCALE, enabled=comm.rank == 0)
        scaler.scale(loss_of(model, comm.rank, 0)).backward()
        said.append(error_of(DisagreementError, lambda: scaler.step(optimizer)))
        half = net().half()
        optimizer = plain(half, comm, compression="signum")
        scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
        x = torch.ones(2, 9, dtype=torch.float16)
        scaler.scale(half(x).sum()).backward()
        said.append(error_of(CollectiveError, lambda: scaler.step(optimizer)))
        optimizer = mpisign.DistributedOptimizer(
            torch.optim.SGD(model.parameters(), lr=0.1), comm=comm, overlap=True
        )
        scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
        optimizer.zero_grad()
        scaler.scale(loss_of(model, comm.rank, 0)).backward()
        said.append(error_of((CollectiveError, RuntimeError), lambda: scaler.step(optimizer)))
        return said

    a, b = simulation.run(2, train)
    assert a == b
    for text, part in zip(
        a, ("GradScaler's scale", "found_inf", "float16", "scaler="), strict=True
    ):
        assert part in text, text
