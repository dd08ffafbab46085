"""What a step promises: models change in mid-run, and all ranks take part alike."""

from __future__ import annotations

import torch
from expected import Expected, Net, at
from front_ends import EXACT, FRONTS, HOROVOD, HVD, REPLICATED, make, promise
from job import attempt, same_replicas


def unwrapped(w):
    """The plain optimizer again, its hooks off; and the votes' state."""
    import mpisign

    return mpisign.unwrap(w.optimizer)


@promise("plain", "overlap", *HOROVOD)
def unwrap(world, front):
    """Hooks go, the state stays: the next wrapper goes on as if nothing had been."""
    w = make(world, front)
    expected = Expected(world, Net(), 0.9)
    for step in range(4):
        if step == 2:
            old, plain = w.votes, unwrapped(w)
            w = make(world, front, w.net, inner=lambda _, plain=plain: plain)
            if front in HVD:  # whose state is the compression's
                w.votes.load_state_dict(old.state_dict())
            else:
                assert w.steps == 2, w.steps
        w.train(at(world, step))
        expected.train(at(world, step))
        expected.check(w, f"step {step}")


@promise(*REPLICATED)
def wrapped_again(world, front):
    """Without a word to the old one, as scripts that unfreeze layers do."""
    net = Net()
    w = make(world, front, net, compression=("sign", EXACT))
    expected = Expected(world, Net())
    for step in range(4):
        if step == 2:
            if front in HVD:  # Horovod's own trips over its old hooks
                unwrapped(w)
            w = make(world, front, net, compression=("sign", EXACT))
        w.train(at(world, step))
        expected.train(at(world, step))
        expected.check(w, f"step {step}")


@promise(*REPLICATED)
def unfrozen(world, front):
    """A layer that begins to need gradients in mid-run: it votes, or every rank raises."""
    w = frozen(world, front)
    expected = Expected(world, w.net)
    for step in range(4):
        if step == 2:
            for net in (w.net, expected.net):
                net.first.requires_grad_(True)
        raised = attempt(world, lambda step=step: w.train(at(world, step)))
        if raised:
            assert step >= 2 and "wrap" in raised, (step, raised)
            for p in expected.net.parameters():
                p.grad = None
            expected.check(w, "after the error")
            return
        expected.train(at(world, step))
        expected.check(w, f"step {step}")
    same_replicas(world, w)


def frozen(world, front):
    net = Net()
    net.first.requires_grad_(False)
    return make(world, front, net, compression=("sign", EXACT))


@promise(*REPLICATED)
def unfrozen_wrapped_again(world, front):
    """What public scripts do, and what the error tells them to do."""
    w = frozen(world, front)
    expected = Expected(world, w.net)
    for step in range(4):
        if step == 2:
            for net in (w.net, expected.net):
                net.first.requires_grad_(True)
            if front in HVD:
                unwrapped(w)
            w = make(world, front, w.net, compression=("sign", EXACT))
        w.train(at(world, step))
        expected.train(at(world, step))
        expected.check(w, f"step {step}")


@promise(*REPLICATED)
def added(world, front):
    """A layer that the optimizer is given in mid-run: it votes, or every rank raises."""
    net = Net()
    first = list(net.first.parameters())
    others = [p for p in net.parameters() if not any(p is q for q in first)]
    if front in HOROVOD or front in ("ddp", "ddp_bare"):
        net.first.requires_grad_(False)
    w = make(world, front, net, compression=("sign", EXACT), parameters=others)
    for step in range(4):
        if step == 2:
            net.first.requires_grad_(True)
            w.optimizer.add_param_group({"params": first})
        raised = attempt(world, lambda step=step: w.train(at(world, step)))
        same_replicas(world, w, f"step {step}")
        if raised:
            assert step >= 2 and "wrap" in raised, (step, raised)
            return
    moved = (net.first.weight.detach() - Net().first.weight).abs()
    assert torch.allclose(moved / 0.125, (moved / 0.125).round(), atol=1e-4), "it did not vote"
    assert moved.any()


@promise(*FRONTS)
def stop(world, front):
    """A signal on one rank stops all ranks after the same step."""
    import mpisign

    w = make(world, front)
    stopped = -1
    try:
        for step in range(6):
            if step == 2 and world.rank == world.size - 1:
                mpisign.request_stop()
            w.train(at(world, step))
            if mpisign.stop_requested():
                stopped = step
                break
        every = world.gather(stopped)
        assert len(set(every)) == 1 and every[0] in (2, 3), every
    finally:
        mpisign.request_stop(False)
