"""Both full-precision rounds on real ranks, hostile ones among them: for test_detox_full.py."""

import hashlib
import warnings

import numpy as np
import torch
from mpi4py import MPI

import mpisign.robust
from mpisign.compressors import Detox
from mpisign.compressors.robust import Robust

warnings.simplefilter("ignore")
comm = mpisign.Communicator()
rank, size = comm.rank, comm.size

rows = np.random.default_rng(0).normal(size=(size, 50_001)).astype(np.float32)
rows[5, 7] = np.nan
for rule in ("median", "nnm+trimmed_mean", "krum", "geometric_median"):
    rule = mpisign.robust.by_name(rule, f=2)
    result = mpisign.robust_aggregate(rows[rank], comm, rule=rule)
    np.testing.assert_allclose(result, rule(rows), 1e-5, 1e-6)

GROUPS = [[r for r in range(size) if r % (size // 3) == g] for g in range(size // 3)]
HOSTILE = (0, 3)
for compressor in (Robust("nnm+trimmed_mean", f=2, momentum=0.9), Detox(3, Robust(), GROUPS)):
    torch.manual_seed(0)
    batch = rank if isinstance(compressor, Robust) else rank % (size // 3)
    net = torch.nn.Sequential(torch.nn.Linear(20, 300), torch.nn.ReLU(), torch.nn.Linear(300, 5))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2)
    mpisign.DistributedOptimizer(
        optimizer, net.named_parameters(), comm=comm, compression=compressor
    )
    losses = []
    for step in range(4):
        optimizer.zero_grad()
        x = torch.randn(32, 20, generator=torch.Generator().manual_seed(100 * step + batch))
        loss = (net(x) - x[:, :5].tanh()).square().mean()
        loss.backward()
        losses.append(loss.item())
        if rank in HOSTILE:
            for p in net.parameters():
                p.grad.mul_(-30 if step % 2 else torch.nan)
        optimizer.step()
    data = b"".join(p.detach().numpy().tobytes() for p in net.parameters())
    digests = np.empty((size, 64), dtype=np.uint8)
    MPI.COMM_WORLD.Allgather(np.frombuffer(hashlib.blake2b(data).digest(), np.uint8), digests)
    assert (digests == digests[0]).all(), "replicas differ"
    assert losses[-1] < losses[0], losses
print(f"rank {rank} is as it should be", flush=True)
