"""What must not pass silently: every rank raises the same error, and ranks may join or not."""

from __future__ import annotations

import horovod.torch as hvd
import horovod_checks as checks
import numpy as np
import torch

from mpisign.errors import CollectiveError, DisagreementError, NaNError, WireError
from mpisign.horovod import Compression

EXACT = {"zeros": "positive", "ties": "zero"}


def optimizer_of(named, compression, **options):
    return hvd.DistributedOptimizer(
        torch.optim.SGD([p for _, p in named], lr=0.5),
        named_parameters=named,
        compression=compression,
        **options,
    )


def expect(label, kind, text, make, spoil=None, named=None, **options):
    """One step that must raise; the same text on every rank."""
    named = checks.parameters() if named is None else named
    optimizer = optimizer_of(named, make(named), **options)
    for name, p in named:
        if not p.requires_grad:
            continue
        g = checks.gradient(name, hvd.rank(), 0)
        if spoil is not None:
            spoil(name, g)
        (p * g[: p.numel()].view(p.shape) if g.dim() == 1 else p * g).sum().backward()
    checks.same_everywhere(label, checks.raises(label, kind, text, optimizer.synchronize))
    hvd.barrier()


def nans(label, ranks, make):
    def spoil(name, g):
        if name == "b" and hvd.rank() in ranks:
            g[3, 3] = float("nan")

    held = f"on rank{'s' if len(ranks) > 1 else ''} {', '.join(str(r) for r in ranks)} "
    expect(label, NaNError, held, make, spoil)


def disagreements():
    rank = hvd.rank()
    ties = "zero" if rank == 1 else "random"
    expect("counters: ties", DisagreementError, "disagree", lambda n: Compression.sign(ties=ties))
    named = checks.parameters()
    if rank == 1:
        named[5] = ("f", torch.nn.Parameter(torch.zeros(4096)))
    text = "ranks disagree on names, shapes or dtypes of the parameters"
    expect("planes: shapes", DisagreementError, text, lambda n: Compression.sign(n), named=named)


def reductions():
    """Operations and process sets that the compression does not know of."""
    g = torch.randn(1000, generator=torch.Generator().manual_seed(hvd.rank()))
    for op in (hvd.Min, hvd.Max, hvd.Product):
        label = f"op={op}"
        text = checks.raises(
            label,
            WireError,
            "neither a Sum nor an Average",
            lambda op=op: hvd.allreduce(g, op=op, name="g", compression=Compression.sign),
        )
        checks.same_everywhere(label, text)
    for make in (lambda n: Compression.sign, lambda n: Compression.sign(n)):
        named = checks.parameters()
        optimizer = optimizer_of(named, make(named), op=hvd.Adasum)
        checks.raises(
            "Adasum", TypeError, "Adasum", lambda n=named: checks.backward(n, hvd.rank(), 0)
        )
        optimizer._handles.clear()
    hvd.barrier()


def forgotten_process_set(pair):
    if hvd.rank() in pair.ranks:
        named = checks.parameters()
        optimizer = optimizer_of(named, Compression.sign, process_set=pair)
        checks.backward(named, hvd.rank(), 0)
        checks.raises("process set not given", WireError, "process_set", optimizer.synchronize)
    hvd.barrier()


def sparse():
    layer = torch.nn.Embedding(10, 3, sparse=True)
    named = list(layer.named_parameters())
    compression = Compression.sign(zeros="abstain", ties="zero")
    optimizer = optimizer_of(named, compression, sparse_as_dense=True)
    layer(torch.tensor([1, 2])).sum().backward()
    optimizer.synchronize()
    dense = layer.weight.grad.to_dense()
    checks.check("sparse_as_dense", bool((dense[[1, 2]] == 1).all()) and float(dense.sum()) == 6)


def strangers():
    """Named parameters that are not all of them."""
    named = checks.parameters()
    compression = Compression.sign(named[1:])
    optimizer = optimizer_of(named, compression)
    checks.raises(
        "not named", TypeError, "got none for 'a'", lambda: checks.backward(named, hvd.rank(), 0)
    )
    optimizer._handles.clear()
    checks.check("callable", type(Compression.signum(momentum=0.5)).__name__ == "CounterVote")
    hvd.barrier()


def two_optimizers():
    """Two models whose gradients are under way together: each vote must meet its own peers."""
    models = [[(f"{m}.{n}", p) for n, p in checks.parameters() if n in checks.SHAPES] for m in "xy"]
    optimizers = [optimizer_of(named, Compression.sign(named)) for named in models]
    for step in range(4):
        for optimizer, named in zip(optimizers, models, strict=True):
            optimizer.zero_grad()
            for n, p in named:
                (p * checks.gradient(n[2:], hvd.rank() + 10 * (n[0] == "y"), step)).sum().backward()
        for optimizer in optimizers:
            optimizer.step()
    for m, named in zip("xy", models, strict=True):
        checks.same_everywhere(f"planes: replicas of model {m}", checks.digest(p for _, p in named))
    named, shared = models[0], Compression.sign(models[0])
    held = [optimizer_of(named, shared), optimizer_of(named, shared)]
    g = lambda: (named[0][1] * checks.gradient("a", 0, 0)).sum().backward()  # noqa: E731
    checks.raises("planes: one compression, two optimizers", TypeError, "one optimizer for each", g)
    for optimizer in held:
        optimizer._handles.clear()
    hvd.barrier()


def joins():
    """Ranks run out of data one after another; the votes of the others go on."""
    rank, size = hvd.rank(), hvd.size()
    named = checks.parameters()
    optimizer = optimizer_of(named, Compression.sign(**EXACT))
    wrong = []
    for step in range(2 + 2 * rank):
        optimizer.zero_grad()
        checks.backward(named, rank, step)
        optimizer.synchronize()
        voters = [r for r in range(size) if step < 2 + 2 * r]
        for name, p in named:
            if name in checks.SHAPES:
                votes = [checks.gradient(name, r, step).to(torch.float64).numpy() for r in voters]
                expected, _ = checks.tally(votes, EXACT["zeros"], EXACT["ties"])
                if not np.array_equal(p.grad.to(torch.float64).numpy(), expected):
                    wrong.append((step, name))
        with optimizer.skip_synchronize():
            optimizer.step()
    hvd.join()
    checks.check("counters: joined ranks do not vote", not wrong, str(wrong))

    named = checks.parameters()
    optimizer = optimizer_of(named, Compression.sign(named))
    for step in range(1 if rank == 1 else 2):
        optimizer.zero_grad()
        checks.backward(named, rank, step)
        if step == 0:
            optimizer.step()
        else:
            # A rank that has raised joins too, and a slower one may then name both.
            text = "called hvd.join, which Horovod's alltoall cannot do without"
            checks.raises("planes: join is refused", CollectiveError, text, optimizer.step)
    hvd.join()


def main():
    pair = hvd.ProcessSet([0, 1])
    hvd.init(process_sets=[pair])
    torch.set_num_threads(1)
    last = hvd.size() - 1
    nans("counters: NaN on two ranks", [0, last], lambda n: Compression.signum)
    disagreements()
    reductions()
    forgotten_process_set(pair)
    sparse()
    strangers()
    two_optimizers()
    joins()
    checks.finish()


main()
