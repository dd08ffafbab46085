"""Votes in groups on real ranks: started by test_ranks.py."""

from __future__ import annotations

import numpy as np
import reference as ref
import samples
import torch
from worlds import RANK, SIZE, WORLD

import mpisign
from mpisign.compressors import Compression
from mpisign.detox import Groups, GroupSampler, assign

EXACT = {"zeros": "abstain", "ties": "zero"}


def votes():
    """Every algorithm that counts groups, bit for bit, and liars of one kind survived."""
    for length in (37, 9_001):
        rows = np.stack([samples.awkward(length, 7 + r) for r in range(SIZE)])
        for groups in (3, [list(range(SIZE - 2)), [SIZE - 1, SIZE - 2]]):
            members = assign(SIZE, groups) if isinstance(groups, int) else groups
            expected = ref.grouped_vote(np.sign(rows), members)
            for how in ({"algorithm": "alltoall"}, {"algorithm": "allgather"}, {"byzantine_f": 1}):
                got = mpisign.majority_vote(rows[RANK], groups=groups, **how, **EXACT)
                np.testing.assert_array_equal(got, expected, f"{groups} {how}")


def train(compression, groups):
    """Two epochs by the sampler, groups drawn anew; rank 1 sends the opposite. The last loss."""
    mpisign.stats().reset()
    torch.manual_seed(0)
    layers = torch.nn.Linear(7, 13), torch.nn.ReLU(), torch.nn.Linear(13, 3)
    net, data = (
        torch.nn.Sequential(*layers),
        torch.randn(45, 7, generator=torch.Generator().manual_seed(1)),
    )
    sampler = GroupSampler(data, groups, seed=3)
    loader = torch.utils.data.DataLoader(data, batch_size=5, sampler=sampler)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02)
    mpisign.DistributedOptimizer(optimizer, net.named_parameters(), compression=compression)
    for epoch in range(2):
        sampler.set_epoch(epoch)
        for x in loader:
            optimizer.zero_grad()
            (net(x) - x[:, :3]).square().mean().backward()
            if RANK == 1:
                for p in net.parameters():
                    p.grad.mul_(-1)
            optimizer.step()
    own = torch.cat([p.detach().reshape(-1) for p in net.parameters()]).numpy()
    replicas = np.empty((SIZE, own.size), dtype=own.dtype)
    WORLD.Allgather(own, replicas)
    assert (replicas.view(np.int32) == own.view(np.int32)).all(), "replicas differ"
    with torch.no_grad():
        return float((net(data) - data[:, :3]).square().mean())


def optimizers():
    for inner in ("sign", Compression.robust(rule="median")):
        groups = Groups(None, 3, reshuffle_every=1, seed=2)
        loss = train(Compression.detox(inner=inner, groups=groups), groups)
        assert loss < 1.1, (inner, loss)
        if inner == "sign":
            found = mpisign.stats().suspects
            others = [d.share for r, d in found.items() if r != 1]
            assert found[1].share > 0.5 and max(others) < 0.01, mpisign.stats().suspects_table()


votes()
optimizers()
print(f"rank {RANK} of {SIZE} is well", flush=True)
