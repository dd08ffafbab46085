"""One process: training must equal sign descent and Signum written out by hand, step for step."""

from __future__ import annotations

import horovod.torch as hvd
import torch
from horovod_checks import check, finish, raises

from mpisign.errors import NaNError
from mpisign.horovod import Compression, DistributedOptimizer

STEPS, LR, BETA = 30, 0.01, 0.9


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(13, 9), torch.nn.Tanh(), torch.nn.Linear(9, 3))


def loss(model, step):
    x = torch.randn(8, 13, generator=torch.Generator().manual_seed(step))
    return model(x).square().sum()


def by_hand(kind, per_step):
    model = network()
    momenta = [torch.zeros_like(p) for p in model.parameters()]
    for step in range(STEPS):
        model.zero_grad()
        for k in range(per_step):
            loss(model, per_step * step + k).backward()
        with torch.no_grad():
            for p, m in zip(model.parameters(), momenta, strict=True):
                m.mul_(BETA).add_(p.grad, alpha=1 - BETA)
                p.sub_(LR * torch.sign(m if kind == "signum" else p.grad))
    return list(model.parameters())


def by_horovod(kind, way, per_step, set_to_none, inner):
    model = network()
    named = list(model.named_parameters())
    make = getattr(Compression, kind)
    build, compression = hvd.DistributedOptimizer, make(named) if way == "planes" else make
    if way == "ours":
        build, compression = DistributedOptimizer, kind
    optimizer = build(
        inner(model.parameters(), lr=LR),
        named_parameters=named,
        compression=compression,
        backward_passes_per_step=per_step,
    )
    for step in range(STEPS):
        if set_to_none:
            optimizer.zero_grad()
        else:
            for p in model.parameters():
                if p.grad is not None:
                    p.grad.zero_()
        for k in range(per_step):
            loss(model, per_step * step + k).backward()
        optimizer.step()
    return list(model.parameters())


def main():
    hvd.init()
    torch.set_num_threads(1)
    for kind in ("sign", "signum"):
        for way in ("counters", "planes", "ours"):
            for per_step, set_to_none in ((1, True), (1, False), (2, True)):
                got = by_horovod(kind, way, per_step, set_to_none, torch.optim.SGD)
                same = all(
                    torch.equal(a, b) for a, b in zip(got, by_hand(kind, per_step), strict=True)
                )
                check(f"{way} {kind} alone, {per_step} passes, set_to_none={set_to_none}", same)
    adam = by_horovod("sign", "counters", 1, True, torch.optim.Adam)
    plain = network()
    check("Adam alone", not torch.equal(adam[0], plain[0].weight))

    model = network()
    raw = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=LR))
    loss(model, 0).backward()
    before = model[0].weight.grad.clone()
    raw.step()
    check("other compressions are left alone", torch.equal(before, model[0].weight.grad))

    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=LR), compression=Compression.sign
    )
    model[0].weight.grad[0, 0] = float("nan")
    raises("NaN alone", NaNError, "on rank 0", optimizer.step)
    finish()


main()
