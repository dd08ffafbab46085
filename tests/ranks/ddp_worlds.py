"""Ranks of torch.distributed, a small model under DDP, and the votes on its gradients by NumPy."""

from __future__ import annotations

import copy
import hashlib
import os

import reference as ref
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import mpisign.ddp
from mpisign.compressors import Sign

ABSTAINING = Sign(zeros="abstain", ties="zero")
WAYS = {
    "rebuilt buckets": {},
    "views": {"gradient_as_bucket_view": True},
    "static graph": {"static_graph": True, "gradient_as_bucket_view": True},
    "its first buckets": {"find_unused_parameters": True},
}

RANK = SIZE = 0


def begin(folder):
    """The process group: torchrun's, or, of mpirun's ranks, over a file in ``folder``."""
    global RANK, SIZE
    torch.set_num_threads(1)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        dist.init_process_group("gloo")
    else:
        rank, size = (int(os.environ[f"OMPI_COMM_WORLD_{n}"]) for n in ("RANK", "SIZE"))
        store = dist.FileStore(str(folder / "store"), size)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    RANK, SIZE = dist.get_rank(), dist.get_world_size()


def finish(checks):
    dist.barrier()
    print(f"\nrank {RANK}: {checks} checks passed\n", flush=True)
    dist.destroy_process_group()


class Net(torch.nn.Module):
    """Odd sizes; layers that are used in another order than they were made in."""

    def __init__(self, seed=0, extra=False, again=False):
        super().__init__()
        torch.manual_seed(seed)
        self.again = again  # computes layers again in the backward pass, by passes within it
        self.last = torch.nn.Linear(13, 3)
        self.first = torch.nn.Linear(7, 13)
        self.middle = torch.nn.Linear(13, 13, bias=False)
        if extra:
            self.sometimes = torch.nn.Linear(13, 13, bias=False)
            self.never = torch.nn.Linear(2, 1, bias=False)

    def forward(self, x, extra=False, breaks=False):
        for name in ("first", "middle", "sometimes", "last"):
            if name == "sometimes" and not extra:
                continue
            if name == "middle" and breaks:
                x = _BreakOff.apply(x)
            layer = getattr(self, name)
            x = x.to(layer.weight.dtype)
            x = checkpoint(layer, x, use_reentrant=True) if self.again else layer(x)
            x = x.tanh()
        return x


def batch(step):
    generator = torch.Generator().manual_seed(1000 * step + RANK)
    return torch.randn(4, 7, generator=generator)


class _BreakOff(torch.autograd.Function):
    """Ends a backward pass in the middle."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        raise RuntimeError("broke off")


def loss_of(model, step, nan=False, breaks=False):
    x = batch(step)
    if nan:
        x[0, 0] = torch.nan
    return (model(x.clone().requires_grad_(), breaks=breaks) - x[:, :3]).square().mean()


def local_gradients(net, step):
    """{name: this rank's own gradient}, by a copy that knows of no other rank."""
    alone = copy.deepcopy(net)
    alone.zero_grad()
    loss_of(alone, step).backward()
    return {n: p.grad for n, p in alone.named_parameters()}


def gathered(x, group=None):
    """Of every rank, by rank."""
    xs = [None] * dist.get_world_size(group)
    dist.all_gather_object(xs, x, group)
    return xs


def everyone(gradients):
    return gathered(gradients)


def votes_without_ties(gradients, state, step):
    """Zeros abstain, ties are zero: needs no random bits, and so no layout."""
    return {
        name: torch.stack([g[name].float().sign() for g in gradients])
        .sum(0)
        .sign()
        .to(gradients[0][name].dtype)
        for name in gradients[0]
    }


def reference_votes(gradients, state, step):
    """Random zeros and ties, by the places in the state's buckets."""
    votes = {}
    for bucket in state._exchange.buckets:
        seed = (state.seed + bucket.index * 0x9E3779B97F4A7C15) % (1 << 64)
        for member, start in zip(bucket.slots, bucket.layout.offsets, strict=True):
            xs = [g[member.name].numpy() for g in gradients]
            vote = ref.majority_vote(xs, seed=seed, step=step, offset=8 * start)
            votes[member.name] = torch.from_numpy(vote).view(xs[0].shape)
    return votes


def same_replicas(net, group=None):
    """SHA-256 over all parameters, of every rank."""
    digest = hashlib.sha256()
    for p in net.parameters():
        digest.update(p.detach().view(torch.uint8).numpy().tobytes())
    assert len(set(gathered(digest.hexdigest(), group))) == 1


def raised(kinds, function):
    """The text of the error that ``function`` must raise."""
    try:
        function()
    except kinds as error:
        return str(error)
    raise AssertionError(f"rank {RANK}: nothing was raised")


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
