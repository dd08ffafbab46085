"""Bytes that really cross the loopback device per step, for a model of a million parameters.

Prints a line a compression: payload as mpisign.stats books it and bytes as the kernel counts them,
both as bits per coordinate, each way. Give the launcher TCP over lo, best in a network of its own:
whatever else uses lo meanwhile is counted too.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import horovod.torch as hvd
import torch

from mpisign import stats
from mpisign.horovod import Compression, CountBytes

STEPS = 10


def sent_by_lo():
    """Bytes that lo has transmitted since it came up, headers included."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        if line.strip().startswith("lo:"):
            return int(line.split(":")[1].split()[8])
    raise RuntimeError("no lo in /proc/net/dev")


def parameters():
    """A million coordinates in 29 parameters."""
    shapes = [(300, 300), (300,), (10, 970)] * 9 + [(100, 4), (99_600,)]
    return [(f"p{i}", torch.nn.Parameter(torch.zeros(s))) for i, s in enumerate(shapes)]


def measure(label, make):
    named = parameters()
    d = sum(p.numel() for _, p in named)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD([p for _, p in named], lr=1e-3),
        named_parameters=named,
        compression=make(named),
    )
    generator = torch.Generator().manual_seed(hvd.rank())
    gradients = [torch.randn(p.shape, generator=generator) for _, p in named]

    def step():
        optimizer.zero_grad()
        sum((p * g).sum() for (_, p), g in zip(named, gradients, strict=True)).backward()
        optimizer.step()

    for _ in range(3):
        step()
    hvd.barrier()
    stats().reset()
    before, start = sent_by_lo(), time.perf_counter()
    hvd.barrier()
    for _ in range(STEPS):
        step()
    seconds = (time.perf_counter() - start) / STEPS
    hvd.barrier()
    wire = sent_by_lo() - before
    booked = stats().stages["exchange"]
    if hvd.rank() == 0:
        bits = 8 / STEPS / d
        print(
            f"wire {label} booked_up={booked.sent * bits:.3f} "
            f"booked_down={booked.received * bits:.3f} "
            f"lo={wire / hvd.size() * bits:.3f} ms={1e3 * seconds:.1f} d={d}",
            flush=True,
        )


def main():
    hvd.init()
    torch.set_num_threads(1)
    measure("fp32", lambda named: CountBytes())
    measure("fp16", lambda named: CountBytes(hvd.Compression.fp16))
    measure("counters", lambda named: Compression.sign)
    measure("planes", Compression.sign)
    measure("planes-zero", lambda named: Compression.sign(named, ties="zero"))
    measure("planes-abstain", lambda named: Compression.sign(named, zeros="abstain"))
    hvd.shutdown()
    sys.exit(0)


main()
