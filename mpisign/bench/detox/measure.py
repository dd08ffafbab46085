"""One sample: some steps of all ranks, which are threads of this process and compute in turns."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

import mpisign
from mpisign.bench.detox import peer
from mpisign.bench.detox.ways import Way
from mpisign.partition import assign
from mpisign.robust.names import by_name
from mpisign.transports import threads

_INPUTS, _CLASSES = 784, 10


@dataclass(frozen=True)
class Sample:
    """Of one step: seconds, and bytes of a rank."""

    work: float
    wall: float
    computing: float
    sent: float


def network(size: int) -> torch.nn.Module:
    """A perceptron of about ``size`` parameters, the same at every call."""
    hidden = max(1, round((size - _CLASSES) / (_INPUTS + 1 + _CLASSES)))
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return torch.nn.Sequential(
            torch.nn.Linear(_INPUTS, hidden), torch.nn.Linear(hidden, _CLASSES)
        )


def parameters(size: int) -> int:
    """Coordinates of ``network``."""
    return sum(p.numel() for p in network(size).parameters())


def sample(way: Way, ranks: int, size: int, steps: int) -> Sample:
    """``steps`` of them after one that does not count."""
    if way.kind in ("here", "byzfl"):
        return _in_one_place(way, ranks, size, steps)
    return _collective(way, ranks, size, steps)


def _collective(way: Way, ranks: int, size: int, steps: int) -> Sample:
    batch = list(range(ranks))  # whose gradient each rank has: its own, or its group's
    if way.groups:
        for number, members in enumerate(assign(ranks, way.redundancy)):
            for rank in members:
                batch[rank] = number

    def work(comm: Any) -> tuple[float, ...]:
        net = network(size)
        optimizer = mpisign.DistributedOptimizer(
            torch.optim.SGD(net.parameters(), lr=1e-3),
            net.named_parameters(),
            comm=comm,
            compression=way.compressor,
            seed=1,
        )
        generator = torch.Generator().manual_seed(batch[comm.rank])
        gradients = [torch.randn(p.shape, generator=generator) for p in net.parameters()]

        def step() -> None:
            for p, g in zip(net.parameters(), gradients, strict=True):
                p.grad = g.clone()
            optimizer.step()

        step()
        before = _now()
        for _ in range(steps):
            step()
        return tuple((b - a) / steps for a, b in zip(before, _now(), strict=True))

    cpu, wall, computing, sent = threads.run(ranks, work)[0]
    return Sample(cpu, wall, computing, sent / ranks)


def _in_one_place(way: Way, ranks: int, size: int, steps: int) -> Sample:
    """The rule on all rows at once, as a parameter server has them: nothing is sent."""
    rule: Callable[[Any], Any] = (
        peer.rule(way.rule, way.f) if way.kind == "byzfl" else by_name(way.rule, way.f)
    )
    rows = torch.randn(ranks, parameters(size), generator=torch.Generator().manual_seed(0))
    rule(rows)
    before = _now()
    for _ in range(steps):
        rule(rows)
    cpu, wall, _, _ = ((b - a) / steps for a, b in zip(before, _now(), strict=True))
    return Sample(cpu, wall, cpu, 0.0)


def _now() -> tuple[float, float, float, float]:
    """Processor time, the clock, seconds of stages other than messages, bytes sent."""
    stages = mpisign.stats().stages
    computing = sum(s.seconds for name, s in stages.items() if name != "exchange")
    return time.process_time(), time.perf_counter(), computing, float(stages["exchange"].sent)
