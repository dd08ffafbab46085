"""mpisign.stop_requested under every front end, in one launch: started by tests/test_stopping.py.

In step 3 rank 1 is asked: before the step, or while its backward pass runs. All ranks must leave
after the same step, and go on, if they do, to the bits of a run that nobody asked to stop.
"""

from __future__ import annotations

import hashlib
import sys
from functools import partial

import torch

import mpisign

STEPS, ASKED = 7, 3
WORLD = sys.argv[1]

if WORLD == "torch":
    import torch.distributed as dist
    from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy
    from torch.nn.parallel import DistributedDataParallel

    import mpisign.ddp
    import mpisign.fsdp

    dist.init_process_group("gloo")
    RANK, SIZE = dist.get_rank(), dist.get_world_size()
else:
    import horovod.torch as hvd

    from mpisign.horovod import Compression, DistributedOptimizer

    hvd.init()
    RANK, SIZE = hvd.rank(), hvd.size()


def gathered(value):
    """What every rank has."""
    if WORLD == "torch":
        found = [None] * SIZE
        dist.all_gather_object(found, value)
        return found
    return hvd.allgather_object(value)


def network():
    torch.manual_seed(0)
    layers = [torch.nn.Linear(7, 13), torch.nn.ReLU(), torch.nn.Linear(13, 9)]
    return torch.nn.Sequential(*layers, torch.nn.ReLU(), torch.nn.Linear(9, 3))


def plain(net, sgd, **options):
    mpisign.DistributedOptimizer(sgd, net.named_parameters(), bucket_size=150, **options)
    return net, sgd


def ddp(net, sgd):
    state = mpisign.ddp.MajorityVoteState(compression="signum", bucket_size=150)
    model = DistributedDataParallel(net, bucket_cap_mb=0.0005)
    model.register_comm_hook(state, mpisign.ddp.majority_vote_hook)
    return model, sgd


def fsdp(net, sgd):
    shard = ShardingStrategy.FULL_SHARD
    wraps = lambda module, recurse, nonwrapped_numel: recurse or isinstance(module, torch.nn.Linear)  # noqa: E731
    model = FullyShardedDataParallel(
        net,
        sharding_strategy=shard,
        device_id=torch.device("cpu"),
        auto_wrap_policy=wraps,
        use_orig_params=True,
    )
    state = mpisign.fsdp.MajorityVoteState(compression="sign")
    model.register_comm_hook(state, mpisign.fsdp.majority_vote_hook)
    return model, torch.optim.SGD(model.parameters(), lr=0.01)


def horovod(net, sgd):
    return net, DistributedOptimizer(sgd, net.named_parameters(), compression="signum")


def by_name(net, sgd):
    named = list(net.named_parameters())
    return net, hvd.DistributedOptimizer(sgd, named, compression=Compression.signum(named))


def counters(net, sgd):
    named = list(net.named_parameters())
    return net, hvd.DistributedOptimizer(sgd, named, compression=Compression.signum())


FRONT_ENDS = {
    "torch": {
        "plain": partial(plain, compression="signum"),
        "average": partial(plain, compression="none"),
        "overlap": partial(plain, compression="signum", overlap=True),
        "ddp": ddp,
        "fsdp": fsdp,
    },
    "horovod": {"mpisign.horovod": horovod, "hvd by name": by_name, "hvd counters": counters},
}


def train(make, when):
    """(the step after which this rank knew, a digest of the parameters)."""
    net = network()
    middle = net[2].weight
    model, optimizer = make(net, torch.optim.SGD(net.parameters(), lr=0.01))
    knew = None
    for step in range(STEPS):
        asks = RANK == 1 and step == ASKED
        if asks and when == "before":
            mpisign.request_stop()
        optimizer.zero_grad()
        x = torch.randn(4, 7, generator=torch.Generator().manual_seed(100 * step + RANK))
        out = model(x)
        if asks and when == "during":
            out.register_hook(lambda grad: mpisign.request_stop())
            middle.register_hook(lambda grad: mpisign.request_stop())
        (out - x[:, :3]).square().mean().backward()
        optimizer.step()
        if knew is None and mpisign.stop_requested():
            knew = step
    mpisign.request_stop(False)
    bits = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
    return knew, hashlib.sha256(bits).hexdigest()


for name, make in FRONT_ENDS[WORLD].items():
    nobody, want = train(make, "never")
    assert nobody is None, name
    for when in ("before", "during"):
        knew, got = train(make, when)
        assert gathered(knew) == [ASKED] * SIZE, f"{name}, asked {when}: {gathered(knew)}"
        assert got == want, f"{name}, asked {when}: other bits"
print(f"\nrank {RANK}: {len(FRONT_ENDS[WORLD])} front ends stopped\n", flush=True)
if WORLD == "torch":
    dist.destroy_process_group()
else:
    hvd.shutdown()
