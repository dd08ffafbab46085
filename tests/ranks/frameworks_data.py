"""What the ranks of frameworks.py train, and the same training with torch's DDP alone."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from job import World, digest
from torch.nn.parallel import DistributedDataParallel

import mpisign.ddp

LR, BATCH, STEPS = 0.1, 8, 8
SHARED = Path(tempfile.mkdtemp(prefix="mpisign-frameworks-"))  # of all ranks of all forked jobs


def world() -> World:
    def allgather(x):
        rows = [None] * dist.get_world_size()
        dist.all_gather_object(rows, x)
        return rows

    return World(dist.get_rank(), dist.get_world_size(), allgather, None)


def net():
    torch.manual_seed(0)
    first, last = torch.nn.Linear(9, 150), torch.nn.Linear(150, 3)
    return torch.nn.Sequential(first, torch.nn.ReLU(), last)


def dataset(size):
    """Of ``STEPS`` batches for each of ``size`` ranks."""
    draw = torch.Generator().manual_seed(1)
    n = STEPS * BATCH * size
    return torch.utils.data.TensorDataset(
        torch.randn(n, 9, generator=draw), torch.randint(3, (n,), generator=draw)
    )


def batch(step):
    """This rank's, as DistributedSampler(shuffle=False) hands them out."""
    rank, size = dist.get_rank(), dist.get_world_size()
    mine = slice(rank + size * BATCH * step, size * BATCH * (step + 1), size)
    return tuple(x[mine] for x in dataset(size).tensors)


def loss_of(model, step):
    x, y = batch(step)
    return torch.nn.functional.cross_entropy(model(x), y)


def plain(compression, accumulate=1, make=net, loss=loss_of, epochs=1):
    """The digest after training with torch's DDP and mpisign's hook, without a framework."""
    model = DistributedDataParallel(make())
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    state = mpisign.ddp.MajorityVoteState(
        compression=compression,
        named_parameters=model.module.named_parameters(),
        optimizer=optimizer,
    )
    model.register_comm_hook(state, mpisign.ddp.majority_vote_hook)
    for step in range(STEPS * epochs):
        model.require_backward_grad_sync = (step + 1) % accumulate == 0
        (loss(model, step % STEPS) / accumulate).backward()
        if model.require_backward_grad_sync:
            optimizer.step()
            optimizer.zero_grad()
    return digest(model.parameters())


def differ(files, *path):
    """The ranks' files hold other momenta or residuals."""
    found = [torch.load(f, weights_only=True)["votes"]["state"] for f in files]
    for key in path:
        found = [f[key] for f in found]
    return not torch.equal(found[0], found[1])
