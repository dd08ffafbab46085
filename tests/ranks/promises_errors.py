"""What a step promises: whatever is wrong on one rank, every rank raises, and nothing has moved."""

from __future__ import annotations

import contextlib
import warnings

import torch
from expected import Expected, Net, at
from front_ends import (
    EXACT,
    FRONTS,
    HOOKS,
    HOROVOD,
    HVD,
    SHARDED,
    beta_of,
    make,
    promise,
)
from job import digest, same_error, same_replicas


@promise(*FRONTS)
def nan(world, front):
    """By its rank; nothing moves, and the next step is as good as any."""
    # The plain optimizer's momenta have taken the step's gradients in.
    plain = front == "plain"
    w = make(world, front, compression=("sign" if plain else "signum", EXACT))
    expected = Expected(world, Net(), 0.0 if plain else beta_of(front))
    last = world.size - 1

    def wrong(model):
        return at(world, 9)(model) * (float("nan") if world.rank == last else 1.0)

    for step in range(3):
        if step == 1:
            same_error(world, lambda: w.train(wrong), "NaN", f"rank {last}")
            expected.check(w, "after the error")
            if front in HVD:  # Horovod's own optimizer does not go on after an error
                return
            w.optimizer.zero_grad()
            continue
        w.train(at(world, step))
        expected.train(at(world, step))
        expected.check(w, f"step {step}")


@promise(*FRONTS)
def settings(world, front):
    """Seeds and compressors; before anything moves."""
    for one, others in (({"seed": 1}, {"seed": 2}), ({"zeros": "positive"}, {"zeros": "random"})):
        mine = one if world.rank == 0 else others
        seed = {k: v for k, v in mine.items() if k == "seed"}
        settings = {k: v for k, v in mine.items() if k != "seed"}
        w = make(world, front, compression=("sign", settings), **seed)
        before = digest(w.parameters().values())
        same_error(world, lambda w=w: w.train(at(world, 0)), "disagree")
        assert digest(w.parameters().values()) == before


@promise("plain", "overlap", *HOOKS, "horovod", "hvd_named")
def start(world, front):
    """An error on every rank, or where broadcasts may follow a warning on every rank."""
    w = make(world, front)
    with torch.no_grad():
        w.net.last.bias.add_(world.rank == 1)
    if front not in HOROVOD:
        same_error(world, lambda: w.train(at(world, 0)), "replicas differ", "rank 1")
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        w.train(at(world, 0))
    told = [str(x.message) for x in caught if "parameters" in str(x.message)]
    every = world.gather(bool(told))
    assert all(every), every


@promise(*FRONTS)
def rates(world, front):
    """As ReduceLROnPlateau on each rank's own loss parts them."""
    w = make(world, front)
    for step in range(2):
        w.train(at(world, step))
    w.optimizer.param_groups[0]["lr"] *= 1.0 if world.rank == 0 else 0.5

    def steps():
        for step in range(2, 6):
            w.train(at(world, step))

    same_error(world, steps, "learning rate")
    if front not in SHARDED:
        same_replicas(world, w)


class WithComplex(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a = torch.nn.Linear(7, 4)
        self.c = torch.nn.Parameter(torch.randn(4, 3, dtype=torch.cfloat))

    def forward(self, x):
        y = self.a(x)
        return (torch.complex(y, y.flip(0)) @ self.c).abs()


@promise(*FRONTS)
def complex_numbers(world, front):
    """A vote on complex numbers is not defined; every rank is told, and nothing moves."""
    holder = []

    def wrapped_and_stepped():
        w = make(world, front, WithComplex())
        holder.append(w)
        w.train(at(world, 0))

    # FSDP1 itself refuses them: "Cannot flatten integer dtype tensors".
    same_error(world, wrapped_and_stepped, "flatten" if front == "fsdp1" else "complex")
    for w in holder:
        if front not in SHARDED:
            same = digest(w.parameters().values()) == digest(WithComplex().parameters())
            assert same, "parameters moved"
        with contextlib.suppress(Exception):
            w.discard()


@promise("plain", "overlap", *HOOKS, *HVD)
def sparse(world, front):
    net = torch.nn.Embedding(10, 3, sparse=True)
    w = make(world, front, net)
    same_error(world, lambda: w.train(lambda model: model(torch.arange(3)).sum()), "sparse")


def clipped(w, model_loss, how):
    """One step whose gradients are changed after they are votes."""
    if how == "closure":  # as Lightning's
        w.optimizer.step(lambda: clipped_loss(w, model_loss))
        return
    w.optimizer.zero_grad()
    model_loss(w.model).backward()
    if w.front in HOROVOD:
        w.optimizer.synchronize()
    if how == "clip":
        if w.front == "fsdp1":
            w.model.clip_grad_norm_(0.5)
        else:
            torch.nn.utils.clip_grad_norm_(list(w.net.parameters()), 0.5)
    else:
        for p in w.net.parameters():
            if p.grad is not None:
                p.grad.mul_(0.5)
    skip = w.optimizer.skip_synchronize() if w.front in HOROVOD else contextlib.nullcontext()
    with skip:
        w.optimizer.step()


def clipped_loss(w, model_loss):
    w.optimizer.zero_grad()
    loss = model_loss(w.model)
    loss.backward()
    torch.nn.utils.clip_grad_value_(list(w.net.parameters()), 0.5)
    return loss


VOTED_BEFORE_STEP = ("overlap", *HOOKS, *SHARDED, *HOROVOD)  # gradients are votes after backward


@promise(*VOTED_BEFORE_STEP)
def clip(world, front):
    """clip_grad_norm_ after backward() under a hook, after synchronize() under Horovod."""
    ways = ["clip", "scale"] + ["closure"] * (front in (*HOOKS, *SHARDED))
    for how in ways:
        w = make(world, front)
        expected = Expected(world, Net(), beta_of(front))
        w.train(at(world, 0))
        expected.train(at(world, 0))
        error = same_error(world, lambda w=w, how=how: clipped(w, at(world, 1), how), "changed")
        assert "clip" in error, error
        expected.check(w, how)


@promise("plain")
def clip_first(world, front):
    """The sign of a clipped gradient is the sign of the gradient."""
    w = make(world, front, compression=("sign", EXACT))
    expected = Expected(world, Net())
    for step in range(2):
        clipped(w, at(world, step), "clip")
        expected.train(at(world, step))
        expected.check(w, f"step {step}")


def scaled_step(w, scaler, model_loss, unscale):
    w.optimizer.zero_grad()
    scaler.scale(model_loss(w.model)).backward()
    if unscale and w.front in HOROVOD:  # Horovod's recipe
        w.optimizer.synchronize()
        scaler.unscale_(w.optimizer)
        with w.optimizer.skip_synchronize():
            scaler.step(w.optimizer)
    else:
        if unscale:
            scaler.unscale_(w.optimizer)
        scaler.step(w.optimizer)
    scaler.update()


@promise(*FRONTS)
def scaler(world, front):
    """In each recipe, also where one rank's loss overflows, and within the timeout.

    The plain optimizer finds it; the others are told, by an error, that they do not know it.
    """
    for unscale in (False, True):
        for overflows in (False, True):
            w = make(world, front)
            before = w.parameters()
            scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

            def scaled(model, overflows=overflows):
                inf = overflows and world.rank == 1
                return at(world, 0)(model) * (float("inf") if inf else 1.0)

            def step(w=w, scaler=scaler, scaled=scaled, unscale=unscale):
                scaled_step(w, scaler, scaled, unscale)

            if front == "plain":
                step()
                after = w.parameters()
                same_replicas(world, w)
                moved = any(not torch.equal(after[n], before[n]) for n in before)
                assert moved != overflows, (unscale, overflows)
                scale = 512.0 if overflows else 1024.0
                assert world.gather(scaler.get_scale()) == [scale] * world.size
                continue
            error = same_error(world, step)
            assert "GradScaler" in error or (overflows and "NaN" in error), error
            after = w.parameters()
            assert all(torch.equal(after[n], before[n]) for n in before), (unscale, overflows)
