"""Ranks whose SVD rounds otherwise hold equal factors; DDP, Horovod and FSDP wrap a thin model.

Run by tests/test_lowrank_training.py: mpirun -n 3 python -m mpi4py lowrank_ranks.py FOLDER
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import ddp_worlds
import torch
from mpi4py import MPI
from torch import nn

import mpisign
from mpisign.lowrank import factorize

WORLD = MPI.COMM_WORLD


def model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(30, 200), nn.Tanh(), nn.Linear(200, 300), nn.Tanh(), nn.Linear(300, 5)
    )


def train(net, optimizer, steps=2):
    for step in range(steps):
        torch.manual_seed(10 * step + WORLD.rank)
        optimizer.zero_grad()
        net(torch.randn(4, 30)).square().mean().backward()
        optimizer.step()


def check(net):
    digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in net.parameters()))
    assert len(set(WORLD.allgather(digest.hexdigest()))) == 1


def plain():
    net = model()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    mpisign.DistributedOptimizer(optimizer, net.named_parameters(), compression="none")
    train(net, optimizer)
    torch.set_num_threads(1 + WORLD.rank)
    factorize(net, optimizer=optimizer, min_size=1)
    torch.set_num_threads(1)
    check(net)
    state = optimizer.state[net[2].u]["exp_avg"].numpy().tobytes()
    assert len(set(WORLD.allgather(state))) == 1
    train(net, optimizer)
    check(net)


def ddp():
    """Wrapped anew, and the plain optimizer that steps on it goes on."""
    from mpisign.ddp import MajorityVoteState, majority_vote_hook

    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    for _ in range(2):
        ddp = nn.parallel.DistributedDataParallel(net)
        ddp.register_comm_hook(MajorityVoteState(), majority_vote_hook)
        train(ddp, optimizer)
        check(net)
        report = factorize(net, optimizer=optimizer, min_size=1)
    assert not report.thin


def horovod():
    import horovod.torch as hvd

    from mpisign.horovod import DistributedOptimizer

    hvd.init()

    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    for i in range(2):
        optimizer = DistributedOptimizer(optimizer, named_parameters=net.named_parameters())
        train(net, optimizer)
        check(net)
        if i == 0:
            try:
                factorize(net, optimizer=optimizer, min_size=1)
            except ValueError as error:
                assert "must not be Horovod's" in str(error)
            optimizer = mpisign.unwrap(optimizer)
            assert factorize(net, optimizer=optimizer, min_size=1).thin


if __name__ == "__main__":
    plain()
    ddp_worlds.begin(Path(sys.argv[1]))
    ddp()
    horovod()
    print("equal", flush=True)
