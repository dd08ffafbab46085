"""Two steps of every front end under one trace: horovodrun -np 2 python traced.py FOLDER.

Prints, on rank 0, which front end took which steps, as JSON.
"""

from __future__ import annotations

import copy
import json
import sys

import horovod.torch as hvd
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import mpisign
import mpisign.ddp
import mpisign.fsdp
import mpisign.horovod
from mpisign import tracing

STEPS = 2
hvd.init()
rank, size = hvd.rank(), hvd.size()
store = dist.FileStore(f"{sys.argv[1]}/store", size)
dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
torch.manual_seed(0)
torch.set_num_threads(1)
net = torch.nn.Sequential(torch.nn.Linear(64, 96), torch.nn.ReLU(), torch.nn.Linear(96, 10))
votes = mpisign.horovod.Compression


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.01)


def ours(model, overlap):
    named = list(model.named_parameters())
    options = {"compression": "signum", "overlap": overlap, "bucket_size": 2000, "skip": None}
    return model, mpisign.DistributedOptimizer(sgd(model), named, comm="torch", **options)


def ddp(model):
    wrapped = DistributedDataParallel(model, bucket_cap_mb=0.01)
    state = mpisign.ddp.MajorityVoteState(bucket_size=2000, skip=None)
    wrapped.register_comm_hook(state, mpisign.ddp.majority_vote_hook)
    return wrapped, sgd(model)


def fsdp(model):
    sharded = fully_shard(model, mesh=dist.init_device_mesh("cpu", (size,)))
    mpisign.fsdp.register_comm_hook(sharded, mpisign.fsdp.MajorityVoteState())
    return sharded, sgd(sharded)


def horovods(model):
    named = list(model.named_parameters())
    options = {"compression": "signum", "skip": None}
    return model, mpisign.horovod.DistributedOptimizer(sgd(model), named, **options)


def hooked(model, compression):
    return model, hvd.DistributedOptimizer(
        sgd(model), model.named_parameters(), compression=compression
    )


made = {
    "plain": lambda m: ours(m, False),
    "overlap": lambda m: ours(m, True),
    "ddp": ddp,
    "fsdp": fsdp,
    "horovod": horovods,
    "planes": lambda m: hooked(m, votes.signum(m.named_parameters(), skip=None)),
    "counters": lambda m: hooked(m, votes.signum()),
}
taken = {}
generator = torch.Generator().manual_seed(rank)
for name, make in made.items():
    model, optimizer = make(copy.deepcopy(net))
    first = tracing.trace.lane().step
    for _ in range(STEPS):
        x = torch.randn(16, 64, generator=generator)
        y = torch.randint(10, (16,), generator=generator)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    taken[name] = list(range(first, tracing.trace.lane().step))
if rank == 0:
    print("STEPS", json.dumps(taken), flush=True)
dist.destroy_process_group()
