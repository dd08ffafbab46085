"""torch.amp.GradScaler under DDP's hook: steps as without it. Part of ddp_suite.py."""

from __future__ import annotations

import copy

import ddp_worlds as worlds
import torch
from ddp_worlds import Net, gathered, loss_of, raised, same_replicas, wrapped

import mpisign.ddp
from mpisign.errors import CollectiveError

BAD = {0: float("inf"), 3: float("nan")}  # step: by what the last rank's loss overflows


def scaled_steps(compression, steps=6, first=0, bad=BAD, fused=False, saved=None, **options):
    """(parameters, the hook's state, scales) after steps of which the bad ones do not count."""
    net = Net()
    with_optimizer = not fused
    model, optimizer, state = wrapped(net, compression, **options)
    if fused:  # which GradScaler leaves the unscaling to; the hook does not know it
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, fused=True)
        state.optimizer = None
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=2)
    state.scaler = scaler
    for x, s in zip((net, state, scaler), saved or (), strict=False):
        x.load_state_dict(s)
    for step in range(first, steps):
        optimizer.zero_grad()
        spoilt = step in bad and worlds.SIZE - 1 == worlds.RANK
        scaler.scale(loss_of(model, step) * (bad[step] if spoilt else 1.0)).backward()
        if with_optimizer and step % 2:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    kept = copy.deepcopy([x.state_dict() for x in (net, state, scaler)])
    return net, kept, scaler.get_scale()


def unscaled_steps(compression, steps=6, **options):
    net = Net()
    model, optimizer, state = wrapped(net, compression, **options)
    for step in range(steps):
        if step not in BAD:
            optimizer.zero_grad()
            loss_of(model, step).backward()
            optimizer.step()
    return net, state.state_dict()


def check_scaled_steps_are_those_without_a_scaler():
    """An inf or a NaN on one rank: no state has moved, and the scale is halved everywhere."""
    for compression, more in (
        (mpisign.Compression.sign(nan="abstain"), {}),
        ("signum", {"warmup_steps": 1}),
        ("ef_sign", {"skip": None}),
    ):
        want, state = unscaled_steps(compression, **more)
        for fused in (False, True):
            if fused and compression != "signum":
                continue
            got, kept, scale = scaled_steps(compression, fused=fused, **more)
            for a, b in zip(want.parameters(), got.parameters(), strict=True):
                assert torch.equal(a, b), (compression, fused)
            assert kept[1]["steps"] == state["steps"] == 4, (compression, kept[1]["steps"])
            for name, slot in state["state"].items():
                for key, value in slot.items():
                    same = kept[1]["state"][name][key]
                    assert torch.equal(torch.as_tensor(value), torch.as_tensor(same)), (name, key)
            assert gathered(scale) == [2.0**16] * worlds.SIZE, scale  # / 2 * 2 / 2 * 2
            same_replicas(got)


def check_a_scaled_run_is_resumed():
    whole, _, scale = scaled_steps("ef_sign")
    _, saved, _ = scaled_steps("ef_sign", steps=4)
    got, _, again = scaled_steps("ef_sign", first=4, saved=saved)
    assert scale == again
    for a, b in zip(whole.parameters(), got.parameters(), strict=True):
        assert torch.equal(a, b)


def check_scalers_that_differ():
    """Are told to all ranks; so is a loss that was not scaled, and factors are powers of two."""
    model, _, state = wrapped(Net(), "signum")
    state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**worlds.RANK)
    error = raised(CollectiveError, state.scaler.scale(loss_of(model, 0)).backward)
    assert "GradScaler's scale" in error, error
    model, _, state = wrapped(Net(), "signum")
    state.scaler = torch.amp.GradScaler("cpu")
    error = raised(CollectiveError, loss_of(model, 0).backward)
    assert "has scaled no loss" in error, error
    for wrong, text in ((torch.amp.GradScaler("cpu", 1000.0), "powers of two"), (3, "got int")):
        error = raised((TypeError, ValueError), lambda x=wrong: setattr(state, "scaler", x))
        assert text in error, error
