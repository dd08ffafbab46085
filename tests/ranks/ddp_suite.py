"""DDP's communication hook, every check on every rank: started by tests/test_ddp.py.

    ddp_suite.py FOLDER [MODULE ...]

``MODULE``: ddp_states, ddp_errors, ddp_parameters, fsdp_suite, whose checks are run besides these.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from pathlib import Path

import ddp_worlds as worlds
import torch
import torch.distributed as dist
from ddp_worlds import (
    ABSTAINING,
    WAYS,
    Net,
    everyone,
    finish,
    gathered,
    loss_of,
    reference_votes,
    same_replicas,
    train,
    votes_without_ties,
    wrapped,
)
from torch.nn.parallel import DistributedDataParallel

import mpisign
import mpisign.ddp
from mpisign.compressors import Sign, Signum


def votes_are(net, model, optimizer, state, reference, case, steps=3):
    """Steps whose gradients become the reference's votes."""
    for step in range(steps):
        mine = worlds.local_gradients(net, step)
        optimizer.zero_grad()
        loss_of(model, step).backward()
        want = reference(everyone(mine), state, step)
        for name, p in net.named_parameters():
            same = p.grad.dtype == p.dtype and torch.equal(p.grad, want[name])
            assert same, (case, step, name)
        optimizer.step()


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
            votes_are(net, model, optimizer, state, reference, (compression, way))


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
        votes_are(net, model, optimizer, state, votes_without_ties, dtypes, steps=2)
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
    modules = [sys.modules["__main__"], *map(importlib.import_module, sys.argv[2:])]
    finish(sum(run(module) for module in modules))
