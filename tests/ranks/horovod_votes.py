"""Every vote under hvd.DistributedOptimizer against counting by hand: see horovod_checks.py."""

from __future__ import annotations

import itertools
import sys

import horovod.torch as hvd
import horovod_checks as checks
import numpy as np
import torch

from mpisign.horovod import Compression

everyone = hvd.global_process_set


def build(way, kind, named, settings):
    """One of the four compressions: counters or planes, sign or signum."""
    make = getattr(Compression, kind)
    if way == "planes":
        return make(named, **settings)
    return make(**settings) if settings else make


def ballots(name, voters, step, passes, momenta, kind, **options):
    """What every voter votes on, by the same arithmetic in the same dtype."""
    votes, unused = [], options.pop("unused")
    for r in voters:
        total = None
        for k in range(passes):
            if checks.uses(name, r, passes * step + k, unused):
                g = checks.gradient(name, r, passes * step + k, **options)
                total = g if total is None else total + g
        if total is None:
            total = torch.zeros_like(checks.gradient(name, r, 0))
        if kind == "signum":
            m = momenta.setdefault((name, r), torch.zeros_like(total))
            m.mul_(0.9).add_(total, alpha=1 - 0.9)
            total = m
        votes.append(total.to(torch.float64).numpy())
    return votes


def votes(label, way, kind, *, steps=3, passes=1, process_set=everyone, unused=True, **rest):
    """A few steps; each parameter's gradient must have become the vote."""
    voters = process_set.ranks
    if hvd.rank() not in voters:
        return
    settings = rest.pop("settings", {})
    zeros, ties = settings.get("zeros", "random"), settings.get("ties", "random")
    options = {"nan": settings.get("nan") == "abstain", "unused": unused}
    if process_set is not everyone:
        settings = {**settings, "process_set": process_set}
    named = checks.parameters()
    compression = build(way, kind, named, settings)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD([p for _, p in named], lr=0.5),
        named_parameters=named,
        compression=compression,
        backward_passes_per_step=passes,
        process_set=process_set,
        **rest,
    )
    momenta, wrong, sure, unsure = {}, [], 0, 0
    for step in range(steps):
        optimizer.zero_grad()
        for k in range(passes):
            checks.backward(named, hvd.rank(), passes * step + k, **options)
        optimizer.synchronize()
        for name, p in named:
            if not p.requires_grad:
                continue
            expected, doubt = checks.tally(
                ballots(name, voters, step, passes, momenta, kind, **options), zeros, ties
            )
            got = p.grad.to(torch.float64).numpy()
            free = np.isin(got, [1, -1] if ties != "zero" else [1, -1, 0])
            if got.shape != expected.shape or not np.where(doubt, free, got == expected).all():
                wrong.append((step, name))
            sure, unsure = sure + (~doubt).sum(), unsure + doubt.sum()
        with optimizer.skip_synchronize():
            optimizer.step()
    checks.check(
        label, not wrong and sure > unsure / 8, f"wrong: {wrong}, {sure} sure, {unsure} not"
    )
    checks.same_everywhere(f"{label}: replicas", checks.digest(p for _, p in named), process_set)


def network():
    torch.manual_seed(3)
    layers = {"first": (20, 33), "odd": (33, 33), "last": (33, 5)}
    return torch.nn.ModuleDict({k: torch.nn.Linear(*v) for k, v in layers.items()})


def trainer(model, compression, unused=False):
    """A generator that takes one step whenever it is asked to."""
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=1e-3),
        named_parameters=model.named_parameters(),
        compression=compression,
    )
    rng = np.random.default_rng([hvd.rank(), 11])
    x = torch.from_numpy(rng.standard_normal((64, 20)).astype(np.float32))
    y = torch.from_numpy(rng.integers(0, 5, 64))
    while True:
        optimizer.zero_grad()
        h = torch.relu(model["first"](x))
        if not unused or rng.random() < 0.5:
            h = torch.relu(model["odd"](h))
        torch.nn.functional.cross_entropy(model["last"](h), y).backward()
        optimizer.step()
        yield


def take(steps, n):
    for _ in range(n):
        next(steps)


def replicas(way):
    """80 steps, a layer unused at random on each rank: parameters stay equal bit for bit."""
    model = network()
    compression = build(way, "sign", list(model.named_parameters()), {})
    take(trainer(model, compression, unused=True), 80)
    checks.same_everywhere(f"{way}: 80 steps: replicas", checks.digest(model.parameters()))


def main():
    pair = hvd.ProcessSet([0, 2]) if int(sys.argv[1]) > 2 else None
    hvd.init(process_sets=[pair] if pair else [])
    torch.set_num_threads(1)
    ways = ("counters", "planes")
    for way, kind in itertools.product(ways, ("sign", "signum")):
        votes(f"{way} {kind}: as it comes", way, kind)
    if "short" in sys.argv:
        return checks.finish()
    policies = [("positive", "zero"), ("abstain", "random"), ("abstain", "zero")]
    for way, (zeros, ties) in itertools.product(ways, [("positive", "positive"), *policies]):
        settings = {"zeros": zeros, "ties": ties, "seed": 9, "nan": "abstain"}
        if (zeros, ties) == ("positive", "positive"):
            settings["nan"] = "raise"
        votes(f"{way}: {settings}", way, "sign", settings=settings)
    exact = {"zeros": "positive", "ties": "zero"}
    for way in ways:
        for label, options in {
            "op=Sum": {"op": hvd.Sum},
            "groups": {"groups": 2, "unused": False},
            "predivide": {"gradient_predivide_factor": 3.0},
            "two passes": {"passes": 2},
        }.items():
            votes(f"{way}: {label}", way, "sign", settings=exact, **options)
        votes(f"{way} signum: two passes, op=Sum", way, "signum", passes=2, op=hvd.Sum)
        if pair:
            votes(f"{way}: process set", way, "sign", settings=exact, process_set=pair)
            votes(f"{way}: process set, Sum", way, "sign", op=hvd.Sum, process_set=pair)
    for way in ways if "long" in sys.argv else []:
        replicas(way)
    checks.finish()


main()
