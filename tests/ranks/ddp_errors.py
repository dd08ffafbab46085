"""What goes wrong under DDP's hook alone; the rest: promises_errors.py. Part of ddp_suite.py."""

from __future__ import annotations

import time

import ddp_worlds as worlds
import torch
from ddp_worlds import (
    ABSTAINING,
    WAYS,
    Net,
    everyone,
    gathered,
    loss_of,
    raised,
    same_replicas,
    train,
    votes_without_ties,
    wrapped,
)
from keys import ctrl_c_in
from torch.nn.parallel import DistributedDataParallel

import mpisign.ddp
from mpisign.errors import CollectiveError, CollectiveTimeout, NaNError


def check_nan_on_one_rank():
    """Raises on all, with the text; nothing hangs, and the next step is as good as any."""
    for way, ddp in {"static graph": WAYS["static graph"], "passes within passes": {}}.items():
        net = Net(again="passes" in way)
        model, optimizer, state = wrapped(net, "signum", ddp=ddp)
        for step in range(4):
            optimizer.zero_grad()
            wrong = step in (0, 2)
            loss = loss_of(model, step, nan=wrong and worlds.RANK == 1)
            if wrong:
                error = raised(NaNError, loss.backward)
                assert "on rank 1" in error and "nan='raise'" in error, (way, error)
                assert len(set(gathered(error))) == 1
            else:
                loss.backward()
                optimizer.step()
        assert state.steps == 2
        same_replicas(net)


def check_what_does_not_fit_is_told_to_all():
    net = Net()
    model, _, _ = wrapped(net, "sign", named=worlds.RANK != 1)
    error = raised(CollectiveError, loss_of(model, 0).backward)
    assert "names, shapes or dtypes" in error, error

    net = Net()
    some = list(net.named_parameters())[worlds.RANK == 1 :]
    model, _, _ = wrapped(net, "sign", named=False, named_parameters=some)
    for _ in range(2):  # it stays wrong
        error = raised(CollectiveError, loss_of(model, 0).backward)
        assert "rank 1: named_parameters must name every parameter" in error, error


def check_a_backward_that_broke_off():
    """What was in flight, or ready for a bucket that had not started, belongs to no later step."""
    for bucket_size in (150, 1 << 20):
        net = Net()
        model, optimizer, state = wrapped(net, ABSTAINING, bucket_size=bucket_size)
        train(model, optimizer, 2)
        assert raised(RuntimeError, loss_of(model, 2, breaks=True).backward) == "broke off"
        assert state._exchange.started == (bucket_size == 150)
        assert state._exchange.ready_slots
        del model  # DDP itself does not go on after that
        model = DistributedDataParallel(net, bucket_cap_mb=0.0005)
        model.register_comm_hook(state, mpisign.ddp.majority_vote_hook)
        for step in range(2, 4):
            mine = worlds.local_gradients(net, step)
            optimizer.zero_grad()
            loss_of(model, step).backward()
            want = votes_without_ties(everyone(mine), state, step)
            for name, p in net.named_parameters():
                assert torch.equal(p.grad, want[name]), (step, name)
            optimizer.step()
        assert state.steps == 4


def check_a_key_that_interrupts():
    """Ends the backward pass of that rank at once, and that of those who would wait for it."""
    model, _, _ = wrapped(Net(), "sign", timeout=60.0)
    loss_of(model, 0).backward()
    loss = loss_of(model, 1)
    if worlds.RANK == 0:
        ctrl_c_in("_finish")
        raised(KeyboardInterrupt, loss.backward)
        return
    if worlds.RANK == 1:
        time.sleep(2)  # whom rank 0 waits for
    error = raised(CollectiveError, loss.backward)
    assert "rank 0 broke off: interrupted" in error, error


def check_a_rank_that_does_not_come():
    """Comes last: the communicator is of no use afterwards."""
    model, _, _ = wrapped(Net(), "sign", timeout=0.5)
    loss_of(model, 0).backward()
    loss = loss_of(model, 1)
    if worlds.RANK == 1:
        time.sleep(1.5)
    error = raised((CollectiveError, CollectiveTimeout), loss.backward)
    said = "gave up on this rank" if worlds.RANK == 1 else "rank 1"
    assert said in error, error
    again = raised(CollectiveError, loss_of(model, 2).backward)
    assert "broke off" in again, again
