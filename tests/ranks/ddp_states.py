"""Every compressor under DDP's hook, and its state in checkpoints. Part of ddp_suite.py."""

from __future__ import annotations

import io
import pickle

import ddp_worlds as worlds
import torch
import torch.distributed as dist
from ddp_worlds import Net, loss_of, raised, same_replicas, train, trained, wrapped
from torch.nn.parallel import DistributedDataParallel

import mpisign
import mpisign.ddp
from mpisign.compressors import COMPRESSORS
from mpisign.errors import CollectiveError


def check_every_compressor_is_that_of_the_optimizer():
    """The same bits as over mpisign.DistributedOptimizer, whatever buckets DDP makes."""
    for name, kind in COMPRESSORS.items():
        compressor = kind()
        if compressor.local_steps > 1:
            continue
        more = {}
        if name == "accordion":  # the third step goes by the high compression
            compressor = kind(every=1, steps_per_epoch=1, threshold=100.0)
            more["skip"] = None
        hooked, _, _ = trained(compressor, steps=3, **more)
        net = Net()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        mpisign.DistributedOptimizer(
            optimizer,
            net.named_parameters(),
            comm=dist.group.WORLD,
            compression=compressor,
            overlap=True,
            bucket_size=150,
            **more,
        )
        train(net, optimizer, 3)
        for a, b in zip(net.parameters(), hooked.parameters(), strict=True):
            assert torch.equal(a, b), name


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
