"""What a step promises: state moves with it, and is saved, found and put back."""

from __future__ import annotations

import copy
import functools
import shutil
import tempfile
import warnings

import torch
from expected import Expected, Net, at, batch
from front_ends import FRONTS, HOOKS, HOROVOD, HVD, REPLICATED, SHARDED, beta_of, make, promise
from job import digest, same_error, same_replicas

import mpisign

STEPPED = tuple(f for f in REPLICATED if f != "hvd_counters")  # what counts its steps


def state_digest(w):
    if w.front in SHARDED:
        return str(w.votes.state_dict())
    return digest([x for _, kept in sorted(w.state().items()) for x in kept.values()])


@promise(*FRONTS)
def discarded(world, front):
    """Gradients that were computed, perhaps exchanged, and thrown away before step()."""
    w = make(world, front)
    expected = Expected(world, Net(), beta_of(front))
    for step in range(6):
        if step % 3 != 1:
            at(world, 100 + step)(w.model).backward()
            w.discard()
        w.train(at(world, step))
        expected.train(at(world, step))
        expected.check(w, f"step {step}")
    if front in STEPPED:
        assert w.steps == 6, f"{w.steps} steps were counted"


@promise(*FRONTS)
def gan(world, front):
    """The generator's backward fills the discriminator's gradients, which are thrown away."""
    torch.manual_seed(0)
    plain = torch.nn.Linear(16, 1), torch.nn.Linear(8, 16)
    d, g = (
        make(world, front, torch.nn.Sequential(net), prefix=name)
        for net, name in zip(map(copy.deepcopy, plain), ("d.", "g."), strict=True)
    )
    want_d, want_g = (
        Expected(world, torch.nn.Sequential(copy.deepcopy(net)), beta_of(front)) for net in plain
    )
    generator = torch.Generator().manual_seed(100 + world.rank)
    for step in range(4):
        real = torch.randn(4, 16, generator=generator)
        noise = torch.randn(4, 8, generator=generator)
        # One backward for both halves of the loss: two are promises_votes.backwards.
        weights = torch.tensor([1.0] * 4 + [-5.0] * 4)[:, None]
        fake = g.model(noise).detach()
        critic = functools.partial(criticised, torch.cat([real, fake]), weights)
        d.train(critic)
        want_d.train(critic)
        want_d.check(d, f"step {step}: discriminator")
        g.optimizer.zero_grad()
        (-d.model(g.model(noise))).mean().backward()
        g.optimizer.step()
        want_g.train(lambda net, z=noise: (-want_d.net(net(z))).mean())
        want_g.check(g, f"step {step}: generator")
        d.discard()
    if front in STEPPED:
        assert d.steps == g.steps == 4, (d.steps, g.steps)


def criticised(x, weights, model):
    return -(model(x) * weights).mean()


@promise(*FRONTS)
def resumed(world, front):
    """From this rank's own checkpoint, in new objects; with random bits."""
    kind = "stochastic_sign" if front in SHARDED else "signum"
    w = make(world, front, compression=kind, lr=0.01)
    for step in range(3):
        w.train(at(world, step))
    saved = w.save()
    for step in range(3, 6):
        w.train(at(world, step))
    again = make(world, front, Net(seed=5), compression=kind, lr=0.01)
    again.load(saved)
    for step in range(3, 6):
        again.train(at(world, step))
    got, want = again.parameters(), w.parameters()
    assert all(torch.equal(got[n], want[n]) for n in want), [
        int((got[n] != want[n]).sum()) for n in want
    ]


@promise(*FRONTS)
def checkpoint(world, front):
    """By mpisign.checkpoint: in new objects, with random bits and another rank's dropout."""
    kind = "stochastic_sign" if front in SHARDED else "signum"
    (folder, *_) = world.gather(tempfile.mkdtemp() if world.rank == 0 else "")

    def made(seed):
        w = make(world, front, Net(seed=seed), kind, lr=0.01, inner=INNER["AdamW"])
        state = {"model": w.model, "optimizer": w.optimizer, "more": {"rank": world.rank}}
        return w, state if w.votes is w.optimizer else {**state, "votes": w.votes}

    def noisy(step):
        return lambda model: (model(batch(step, world.rank)) * torch.randn(3)).square().mean()

    try:
        w, state = made(0)
        torch.manual_seed(world.rank)
        for step in range(6):
            if step == 3:
                if front in (*HOOKS, *HVD):  # whose state is not the optimizer's
                    less = {k: v for k, v in state.items() if k != "votes"}
                    save = functools.partial(mpisign.checkpoint.save, comm=world.group)
                    same_error(world, functools.partial(save, folder, 3, less), "add it to state")
                mpisign.checkpoint.save(folder, 3, state, comm=world.group)
            w.train(noisy(step))
        again, state = made(5)
        assert mpisign.checkpoint.load(folder, state, comm=world.group) == 3
        for step in range(3, 6):
            again.train(noisy(step))
        assert state["more"] == {"rank": world.rank}
        got, want = again.parameters(), w.parameters()
        wrong = {n: int((got[n] != want[n]).sum()) for n in want}
        assert not any(wrong.values()), wrong
        if front not in SHARDED:
            assert state_digest(again) == state_digest(w), "state"
    finally:
        world.gather("all are done")
        shutil.rmtree(folder, ignore_errors=True)


INNER = {
    "SGD": functools.partial(torch.optim.SGD, lr=0.125),
    "AdamW": functools.partial(torch.optim.AdamW, lr=0.01),
}


@promise("plain", "overlap", *HOOKS, *SHARDED, "horovod")
def hidden_steps(world, front):
    """torch.distributed.checkpoint fills an optimizer's state by a step on zeros."""
    for name, inner in INNER.items():
        nets = []
        for saves in (False, True):
            w = make(world, front, inner=inner)
            for step in range(5):
                w.train(at(world, step))
                w.optimizer.zero_grad()
                if saves and step in (1, 2):
                    hidden_step(w)
            nets.append(w)
        a, b = nets
        assert digest(a.parameters().values()) == digest(b.parameters().values()), name
        assert state_digest(a) == state_digest(b), f"{name}: state"
        if front not in SHARDED:
            assert (a.steps, b.steps) == (5, 5), (name, a.steps, b.steps)


def hidden_step(w):
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    get_optimizer_state_dict(w.net, w.optimizer)


@promise(*HOROVOD)
def broadcast(world, front):
    import horovod.torch as hvd

    for name, inner in INNER.items():
        nets = []
        for sends in (False, True):
            w = make(world, front, inner=inner)
            if sends and name == "SGD":  # of AdamW that step counts, in Horovod's own optimizer too
                hvd.broadcast_optimizer_state(w.optimizer, root_rank=0)
            for step in range(3):
                w.train(at(world, step))
                if sends and step == 1:
                    hvd.broadcast_optimizer_state(w.optimizer, root_rank=0)
            nets.append(w)
        a, b = nets
        assert digest(a.parameters().values()) == digest(b.parameters().values()), name
        assert state_digest(a) == state_digest(b), f"{name}: state"
        assert a.steps == b.steps, (name, a.steps, b.steps)


@promise("plain", "overlap", "horovod")
def dcp(world, front):
    """Where the compressor's state is part of the optimizer's, DCP saves and restores it."""
    from torch.distributed.checkpoint.state_dict import (
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    for name, inner in INNER.items():
        w = make(world, front, inner=inner)
        for step in range(3):
            w.train(at(world, step))
        w.optimizer.zero_grad()
        saved = copy.deepcopy(get_optimizer_state_dict(w.net, w.optimizer))  # else shared
        again = make(world, front, Net(seed=5), inner=inner)
        again.net.load_state_dict(w.net.state_dict())
        set_optimizer_state_dict(again.net, again.optimizer, saved)
        assert again.steps == 3, f"{name}: {again.steps} steps restored"
        assert state_digest(again) == state_digest(w), f"{name}: state"
        for wrapped in (w, again):
            wrapped.train(at(world, 3))
        assert digest(w.parameters().values()) == digest(again.parameters().values()), name


@promise("plain", "overlap", "horovod")
def dcp_files(world, front):
    """torch.distributed.checkpoint writes one folder of all ranks: each finds its own in it."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    def parts(w):
        net, optimizer = get_state_dict(w.net, w.optimizer)
        return {"net": net, "optimizer": optimizer}

    w = make(world, front)
    for step in range(3):
        w.train(at(world, step))
    alone = "" if torch.distributed.is_initialized() else f"-{world.rank}"
    (folder, *_) = world.gather(tempfile.mkdtemp() if world.rank == 0 else "")
    try:
        dcp.save(parts(w), checkpoint_id=folder + alone)
        again = make(world, front, Net(seed=5))
        found = parts(again)
        dcp.load(found, checkpoint_id=folder + alone)
        set_state_dict(
            again.net,
            again.optimizer,
            model_state_dict=found["net"],
            optim_state_dict=found["optimizer"],
        )
        for wrapped in (w, again):
            wrapped.train(at(world, 3))
    finally:
        world.gather("all are done")
        shutil.rmtree(folder + alone, ignore_errors=True)
    assert again.steps == 4, f"{again.steps} steps"
    assert state_digest(again) == state_digest(w), "state"
    assert digest(w.parameters().values()) == digest(again.parameters().values())


@promise(*REPLICATED)
def rank_0s_file(world, front):
    """Loaded by all ranks it gives them rank 0's momentum: they are told, and stay equal."""
    w = make(world, front)
    for step in range(2):
        w.train(at(world, step))
    (rank_0s, *_) = world.gather(w.save())
    again = make(world, front, Net(seed=5))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        again.load(rank_0s)
        again.train(at(world, 2))
    told = [str(x.message) for x in caught if "rank 0" in str(x.message)]
    every = world.gather(bool(told))
    assert every == [r != 0 for r in range(world.size)], f"{every}, {told}"
    same_replicas(world, again)


@promise(*REPLICATED)
def one_loads(world, front):
    """Where the state says how far a rank has come."""
    w = make(world, front)
    for step in range(2):
        w.train(at(world, step))
    saved = w.save()
    again = make(world, front)
    again.net.load_state_dict(w.net.state_dict())
    if world.rank == 1:
        again.load(saved)
    if front in HOROVOD:  # by rule all go on from the largest
        again.train(at(world, 2))
        same_replicas(world, again)
    else:
        same_error(world, lambda: again.train(at(world, 2)), "rank")
