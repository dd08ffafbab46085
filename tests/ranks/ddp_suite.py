"""DDP's communication hook, every check on every rank: started by tests/test_ddp.py."""

from __future__ import annotations

import io
import os
import pickle
import signal
import sys
import threading
import time
from pathlib import Path

import ddp_worlds as worlds
import torch
import torch.distributed as dist
from ddp_worlds import (
    Net,
    everyone,
    finish,
    gathered,
    loss_of,
    raised,
    reference_votes,
    same_replicas,
    votes_without_ties,
)
from torch.nn.parallel import DistributedDataParallel

import mpisign
import mpisign.ddp
from mpisign.compressors import COMPRESSORS, Sign, Signum
from mpisign.errors import CollectiveError, CollectiveTimeout, NaNError

ABSTAINING = Sign(zeros="abstain", ties="zero")
WAYS = {
    "rebuilt buckets": {},
    "views": {"gradient_as_bucket_view": True},
    "static graph": {"static_graph": True, "gradient_as_bucket_view": True},
    "its first buckets": {"find_unused_parameters": True},
}


def wrapped(net, compression, *, lr=0.1, ddp=None, named=True, **options):
    """(DDP, optimizer, state), with many small buckets, DDP's and ours."""
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    names = {"named_parameters": net.named_parameters()} if named else {}
    options = {"optimizer": optimizer, "bucket_size": 150, **names, **options}
    state = mpisign.ddp.MajorityVoteState(None, compression, **options)
    model = DistributedDataParallel(net, bucket_cap_mb=0.0005, **(ddp or {}))
    model.register_comm_hook(state, mpisign.ddp.majority_vote_hook)
    return model, optimizer, state


def train(model, optimizer, steps, first=0):
    """Another batch on every rank and in every step, another learning rate in every step."""
    for step in range(first, first + steps):
        optimizer.param_groups[0]["lr"] = 0.1 / (1 + step)
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()


def trained(compression, steps=4, **options):
    net = Net()
    model, optimizer, state = wrapped(net, compression, **options)
    train(model, optimizer, steps)
    same_replicas(net)
    return net, optimizer, state


def check_the_vote_is_that_of_numpy():
    """Bit for bit, whatever DDP's buckets are."""
    for compression, reference in (
        (ABSTAINING, votes_without_ties),
        (Sign(), reference_votes),
        (Signum(momentum=0.0), reference_votes),
    ):
        for way, ddp in WAYS.items():
            net = Net()
            model, optimizer, state = wrapped(net, compression, seed=5, ddp=ddp)
            for step in range(3):
                mine = worlds.local_gradients(net, step)
                optimizer.zero_grad()
                loss_of(model, step).backward()
                want = reference(everyone(mine), state, step)
                for name, p in net.named_parameters():
                    assert torch.equal(p.grad, want[name]), (compression, way, step, name)
                optimizer.step()


def check_every_compressor_is_that_of_the_optimizer():
    """The same bits as over mpisign.DistributedOptimizer, whatever buckets DDP makes."""
    for name, kind in COMPRESSORS.items():
        compressor = kind()
        if compressor.local_steps > 1:
            continue
        hooked, _, _ = trained(name, steps=3)
        net = Net()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        mpisign.DistributedOptimizer(
            optimizer,
            net.named_parameters(),
            comm=dist.group.WORLD,
            compression=name,
            overlap=True,
            bucket_size=150,
        )
        train(net, optimizer, 3)
        for a, b in zip(net.parameters(), hooked.parameters(), strict=True):
            assert torch.equal(a, b), name


def check_gradients_add_up_without_sync():
    net = Net()
    model, optimizer, state = wrapped(net, ABSTAINING)
    for step in range(0, 6, 2):
        first, second = (worlds.local_gradients(net, s) for s in (step, step + 1))
        optimizer.zero_grad()
        with model.no_sync():
            loss_of(model, step).backward()
        loss_of(model, step + 1).backward()
        want = votes_without_ties(everyone({n: first[n] + second[n] for n in first}), state, step)
        for name, p in net.named_parameters():
            assert torch.equal(p.grad, want[name]), name
        optimizer.step()
    assert state.steps == 3


def check_unused_parameters():
    """Of one rank alone: its vote. Of none: left alone, and their state too."""
    for views in (False, True):
        net = Net(extra=True)
        ddp = {"find_unused_parameters": True, "gradient_as_bucket_view": views}
        model, optimizer, state = wrapped(net, Signum(zeros="abstain", ties="zero"), ddp=ddp)
        for step in range(2):
            optimizer.zero_grad()
            x = worlds.batch(step)
            out = model(x, extra=worlds.RANK == 0)
            (out - x[:, :3]).square().mean().backward()
            mine = net.sometimes.weight.grad.clone()
            assert torch.equal(mine, gathered(mine)[0]) and mine.any(), step
            assert net.never.weight.grad is None
            optimizer.step()
        assert "never.weight" not in state.state_dict()["state"]
        assert ("sometimes.weight" in state.state_dict()["state"]) == (worlds.RANK == 0)
        same_replicas(net)


def check_dtypes():
    for dtypes in ((torch.bfloat16,), (torch.float16,), (torch.bfloat16, torch.float32)):
        net = Net()
        for i, layer in enumerate(net.children()):
            layer.to(dtypes[i % len(dtypes)])
        model, optimizer, state = wrapped(net, ABSTAINING)
        for step in range(2):
            mine = worlds.local_gradients(net, step)
            optimizer.zero_grad()
            loss_of(model, step).backward()
            want = votes_without_ties(everyone(mine), state, step)
            for name, p in net.named_parameters():
                assert p.grad.dtype == p.dtype and torch.equal(p.grad, want[name]), (dtypes, name)
            optimizer.step()
        same_replicas(net)


def check_nan_on_one_rank():
    """Raises on all, with the text; nothing hangs, and the next step is as good as any."""
    for way, ddp in {**WAYS, "passes within passes": {}}.items():
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

    net = Net()
    lr = 0.1 if worlds.RANK else 0.2
    model, _, _ = wrapped(net, "sign", lr=lr)
    assert "optimizer settings" in raised(CollectiveError, loss_of(model, 0).backward)

    net = Net()
    with torch.no_grad():
        model, _, _ = wrapped(net, "sign")
        next(net.parameters()).add_(worlds.RANK == 1)
    error = raised(CollectiveError, loss_of(model, 0).backward)
    assert "the parameters they start from" in error, error

    net = torch.nn.Embedding(7, 3, sparse=True)
    model, _, _ = wrapped(net, "sign")
    error = raised(RuntimeError, model(torch.arange(3)).sum().backward)
    assert "majority_vote_hook: DDP hands over a sparse gradient" in error, error


def check_a_backward_that_broke_off():
    """What was on its way belongs to no later step."""
    net = Net()
    model, optimizer, state = wrapped(net, ABSTAINING)
    train(model, optimizer, 2)
    assert raised(RuntimeError, loss_of(model, 2, breaks=True).backward) == "broke off"
    assert state._exchange.started
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


def resumed(net, compression, checkpoint, pickled, **options):
    """What a new process does with a checkpoint."""
    saved = torch.load(io.BytesIO(checkpoint), weights_only=True)
    net.load_state_dict(saved["net"])
    model, optimizer, state = wrapped(net, compression, **options)
    if pickled is None:
        state.load_state_dict(saved["votes"])
        return model, optimizer, state
    state = pickle.loads(pickled)
    state.optimizer = optimizer
    model = DistributedDataParallel(net, bucket_cap_mb=0.0005)
    model.register_comm_hook(state, mpisign.ddp.majority_vote_hook)
    return model, optimizer, state


def check_a_checkpoint_goes_on_bit_for_bit():
    """Also what has been saved before DDP rebuilt its buckets, and by pickle."""
    for compression in ("ef_sign", "onebit", "stochastic_sign"):
        for named in (True, False):
            whole, _, _ = trained(compression, steps=4, named=named)
            for before in (1, 2):
                first, _, state = trained(compression, steps=before, named=named)
                buffer = io.BytesIO()
                torch.save({"net": first.state_dict(), "votes": state.state_dict()}, buffer)
                pickled = pickle.dumps(state) if before == 1 else None
                net = Net(seed=9)
                model, optimizer, again = resumed(
                    net, compression, buffer.getvalue(), pickled, named=named
                )
                train(model, optimizer, 4 - before, before)
                assert again.steps == 4
                for a, b in zip(whole.parameters(), net.parameters(), strict=True):
                    assert torch.equal(a, b), (compression, named, before)


def check_a_checkpoint_that_does_not_fit():
    _, _, state = trained("signum", steps=1, named=False)
    saved = state.state_dict()
    saved["state"]["0"]["momentum"] = torch.zeros(3)
    model, _, other = wrapped(Net(), "signum", named=False)
    if worlds.RANK == 1:
        other.load_state_dict(saved)
    error = raised(CollectiveError, loss_of(model, 0).backward)
    assert "rank 1: load_state_dict: momentum of '0' must have shape" in error, error
    assert "must be what" in raised(ValueError, lambda: other.load_state_dict({}))


def check_a_rank_without_a_checkpoint():
    """Is given what all share."""
    first, _, state = trained("onebit", steps=2)
    saved = state.state_dict()
    net = Net(seed=9)
    net.load_state_dict(first.state_dict())
    model, optimizer, again = wrapped(net, "onebit")
    last = worlds.RANK == worlds.SIZE - 1
    again.load_state_dict({"steps": saved["steps"], "state": {}} if last else saved)
    train(model, optimizer, 2, first=2)
    same_replicas(net)


def check_groups():
    """Of some ranks, and whatever else connects the ranks of DDP's."""
    part = dist.new_group([0, 1])
    if worlds.RANK < 2:
        net = Net()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        state = mpisign.ddp.MajorityVoteState(part, "signum", optimizer=optimizer)
        model = DistributedDataParallel(net, process_group=part)
        model.register_comm_hook(state, mpisign.ddp.majority_vote_hook)
        train(model, optimizer, 2)
        same_replicas(net, part)
    if "OMPI_COMM_WORLD_RANK" in os.environ:
        nets = []
        for group in (None, mpisign.Communicator("mpi")):
            nets.append(Net())
            model, optimizer, state = wrapped(nets[-1], "signum")
            state.process_group = group
            train(model, optimizer, 3)
        for a, b in zip(*(net.parameters() for net in nets), strict=True):
            assert torch.equal(a, b)


def check_uneven_inputs():
    """DDP's join(): a rank without inputs abstains."""
    net = Net()
    model, optimizer, state = wrapped(net, ABSTAINING)
    with model.join():
        for step in range(4 if worlds.RANK else 2):
            optimizer.zero_grad()
            loss_of(model, step).backward()
            optimizer.step()
    assert state.steps == 4
    same_replicas(net)


def check_a_key_that_interrupts():
    """Ends the backward pass of that rank at once, and that of those who would wait for it."""
    model, _, _ = wrapped(Net(), "sign", timeout=60.0)
    loss_of(model, 0).backward()
    loss = loss_of(model, 1)
    if worlds.RANK == 0:
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        raised(KeyboardInterrupt, loss.backward)
        return
    if worlds.RANK == 1:
        time.sleep(1)
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


def run(module):
    checks = [f for name, f in vars(module).items() if name.startswith("check_")]
    for check in checks:
        began = time.perf_counter()
        check()
        if worlds.RANK == 0 and os.environ.get("MPISIGN_TEST_TIMES"):
            print(f"{time.perf_counter() - began:6.2f} s {check.__name__}", flush=True)
    return len(checks)


if __name__ == "__main__":
    worlds.begin(Path(sys.argv[1]))
    modules = [sys.modules["__main__"]]
    if "fsdp" in sys.argv[2:]:
        import fsdp_suite

        modules.insert(0, fsdp_suite)
    finish(sum(run(module) for module in modules))
