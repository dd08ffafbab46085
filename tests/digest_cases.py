"""The cases of tests/digests.py: collectives, local functions, and every front end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

import mpisign
from mpisign import attacks, detox, robust
from mpisign import compressors as c

Case = Callable[[Any], Any]
Cases = Iterator[tuple[str, Case]]

LENGTHS = [0, 1, 7, 33, 1000, 100_003, 3_000_000]
DTYPES = ["float32", "float16", "bfloat16", "float64"]
NAMES = list(c.COMPRESSORS)
SETTINGS = {
    "sign abstain": c.Sign(zeros="abstain", ties="zero"),
    "sign positive": c.Sign(zeros="positive", ties="positive"),
    "signum 0.7": c.Signum(momentum=0.7),
    "signum ties zero": c.Signum(zeros="abstain", ties="zero", nan="abstain"),
    "lion abstain": c.Lion(zeros="abstain", ties="zero", nan="abstain"),
    "lion_avg abstain": c.LionAvg(zeros="abstain"),
    "ef_sign 256": c.EFSign(block=256, zeros="abstain"),
    "ef_sign nan": c.EFSign(nan="abstain"),
    "onebit whole": c.OneBit(block=None, nan="abstain"),
    "onebit 256": c.OneBit(block=256, zeros="abstain"),
    "sparsign 0.4": c.Sparsign(budget=0.4, ties="random", nan="abstain"),
    "ef_sparsign": c.EFSparsign(budget_local=2.0, budget_global=0.5),
    "ef_sparsign local": c.EFSparsign(budget_local=0.5, budget_global=0.3, local_steps=2),
    "noisy_sign": c.NoisySign(scale=0.5),
    "stochastic_sign": c.StochasticSign(bound=3.0),
    "qsgd nan": c.QSGD(nan="abstain"),
}


def nodes_of(size: int) -> list[int]:
    """Two ranks a node."""
    return [r // 2 for r in range(size)]


def values(length: int, dtype: str, *key: int, nan: bool = False) -> Any:
    """Normal numbers among zeros of both signs, subnormals and, at will, NaNs."""
    rng = np.random.default_rng([length, *key])
    x = rng.standard_normal(length).astype(np.float32)
    kinds = rng.integers(0, 16, length)
    for kind, value in enumerate((0.0, -0.0, 1e-41, -1e-41, np.nan if nan else 0.0)):
        x[kinds == kind] = value
    if dtype == "bfloat16":
        return torch.from_numpy(x).bfloat16()
    return x.astype(dtype)


def partition(size: int) -> list[list[int]]:
    """Odd groups: three ranks and single ones."""
    first = min(size, 3) if size != 2 else 1
    return [list(range(first)), *([r] for r in range(first, size))]


def cases(kind: str, size: int) -> Cases:
    """(name, function of the World) in one order on all ranks."""
    yield from collectives(kind, size)
    yield from optimizers(kind, size)
    if kind == "threads" and size == 1:
        yield from local()
    if kind in ("mpi", "torch") and size < 4:  # four ranks on two cores are slow
        import digest_fronts

        yield from digest_fronts.torch_cases(size)
        if kind == "mpi":
            yield from digest_fronts.horovod_cases(size)


def collectives(kind: str, size: int) -> Cases:
    lengths = LENGTHS if kind == "mpi" else LENGTHS[:-2]
    everywhere = ["auto", "allgather", "alltoall", "hierarchical", "vote_of_votes"]

    def vote(name: str, n: int, dtype: str = "float32", weight: Any = 1.0, **how: Any) -> Any:
        nan = how.get("nan") == "abstain"

        def case(w: Any) -> Any:
            x = values(n, dtype, w.rank, nan=nan)
            own = weight(w.rank) if callable(weight) else weight
            return w.comm.majority_vote(x, weight=own, seed=5, **{"step": 3, **how})

        return f"vote/{name}", case

    for algorithm in everywhere:
        for n in lengths:
            yield vote(f"{algorithm}/{n}", n, algorithm=algorithm)
        for dtype in DTYPES[1:]:
            yield vote(f"{algorithm}/{dtype}", 1000, dtype, algorithm=algorithm)
        for zeros in ("positive", "random", "abstain"):
            for ties in ("positive", "random", "zero"):
                for nan in ("raise", "abstain"):
                    how = {"zeros": zeros, "ties": ties, "nan": nan, "algorithm": algorithm}
                    yield vote(f"{algorithm}/{zeros} {ties} {nan}", 203, **how)
        if algorithm != "vote_of_votes":
            for n in (33, 100_003):
                yield vote(
                    f"{algorithm}/weight/{n}", n, weight=lambda r: r + 0.5, algorithm=algorithm
                )
    for n in (7, 1000, 100_003):
        yield vote(f"groups/{n}", n, groups=partition(size))
        yield vote(f"groups abstain/{n}", n, groups=partition(size), zeros="abstain", ties="zero")
        if size > 2:
            yield vote(f"byzantine/{n}", n, byzantine_f=1, algorithm="alltoall")
            yield vote(f"byzantine auto/{n}", n, byzantine_f=1, zeros="abstain")
    yield vote("default step", 1000, step=None)
    yield vote("nan raises", 1000, zeros="positive", algorithm="sideways")

    def in_place(w: Any) -> Any:
        x = values(1000, "float32", w.rank).reshape(40, 25)
        assert w.comm.majority_vote(x, out=x, step=1) is x
        y = torch.from_numpy(values(1000, "float32", w.rank, 1)).reshape(25, 40).t()
        return x, w.comm.majority_vote(y, step=2), mpisign.majority_vote(x[:, 3:9], w.comm, step=3)

    yield "vote/in place, strided", in_place

    def in_flight(w: Any) -> Any:
        xs = [values(n, "float32", w.rank) for n in (1000, 7, 100_003)]
        handles = [w.comm.majority_vote_async(x, step=i) for i, x in enumerate(xs)]
        counts = w.comm.tally_async(xs[0], step=9)
        return [h.wait() for h in reversed(handles)], tuple(counts.wait())

    yield "vote/in flight", in_flight

    def of(name: str, n: int, method: str, **how: Any) -> Any:
        dtype = how.pop("dtype", "float32")

        def case(w: Any) -> Any:
            x = values(n, dtype, w.rank, nan=how.get("nan") == "abstain")
            found = getattr(w.comm, method)(x, seed=5, step=3, **how)
            return tuple(found) if method == "tally" else found

        return f"{method}/{name}/{n}", case

    for method in ("tally", "mean_of_signs"):
        for algorithm in everywhere[:3]:
            for n in lengths:
                yield of(algorithm, n, method, algorithm=algorithm)
            for zeros in ("positive", "abstain"):
                for nan in ("raise", "abstain"):
                    how = {"zeros": zeros, "nan": nan, "algorithm": algorithm}
                    yield of(f"{algorithm} {zeros} {nan}", 203, method, **how)
        for dtype in DTYPES[1:]:
            yield of(dtype, 1000, method, dtype=dtype)
    yield of("weight 3", 1000, "tally", weight=3)

    def compressed(name: str, n: int, block: int | None, dtype: str = "float32", **how: Any) -> Any:
        def case(w: Any) -> Any:
            state = mpisign.CompressedMeanState(n, w.size, w.rank, block)
            nan = how.get("nan") == "abstain"
            xs = [values(n, dtype, w.rank, step, nan=nan) for step in range(3)]
            means = [w.comm.compressed_mean(x, state, step=i, **how) for i, x in enumerate(xs)]
            return means, state.state_dict()

        return f"compressed_mean/{name}/{block}/{n}", case

    for n in lengths:
        for block in (None, 256):
            yield compressed("plain", n, block)
    for zeros in ("positive", "abstain"):
        for nan in ("raise", "abstain"):
            yield compressed(f"{zeros} {nan}", 1000, 256, zeros=zeros, nan=nan)
    for dtype in DTYPES[1:]:
        yield compressed(dtype, 1000, None, dtype)

    def aggregate(name: str, n: int, rule: Any, dtype: str = "float32") -> Any:
        def case(w: Any) -> Any:
            function = getattr(mpisign, "robust_aggregate", None) or robust.aggregate
            x = values(n, dtype, w.rank)
            return function(x, w.comm, rule=rule, seed=5, step=3)

        return f"aggregate/{name}/{n}", case

    f = max(0, (size - 1) // 2 - 1)
    for name in robust.RULES:
        for n in (0, 7, 1000, 100_003 if kind == "mpi" else 33):
            yield aggregate(name, n, name)
        for mixing in ("nnm", "bucketing", "clipping"):
            yield aggregate(f"{mixing}+{name}", 1000, f"{mixing}+{name}")
        yield aggregate(f"{name} f", 1000, robust.by_name(name, f))
    for dtype in DTYPES[1:]:
        yield aggregate(dtype, 1000, "median", dtype)
    if kind == "mpi":
        yield aggregate("median", 3_000_000, "median")


class Net(torch.nn.Module):
    """Odd sizes, an embedding of which few rows are used, a parameter that is not used."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.Embedding(50, 7)
        self.first = torch.nn.Linear(7, 130)
        self.middle = torch.nn.Linear(130, 130, bias=False)
        self.last = torch.nn.Linear(130, 3)
        self.to(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(self.embedding(x)).tanh()
        return self.last(self.middle(hidden).relu())


def loss_of(model: Any, step: int, rank: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * step + rank)
    x = torch.randint(0, 50, (6,), generator=generator)
    return (model(x).float() - 1).square().mean()


def optimizers(kind: str, size: int) -> Cases:
    def train(name: str, compression: Any, steps: int = 3, dtype: Any = torch.float32, **how: Any):
        def case(w: Any) -> Any:
            net, data = Net(dtype), w.rank
            if "detox" in name:  # the ranks of a group compute the same
                data = next(i for i, group in enumerate(partition(w.size)) if w.rank in group)
            optimizer = torch.optim.SGD(net.parameters(), lr=0.02, weight_decay=0.01)
            comm = None if how.get("overlap") and w.kind == "mpi" else w.comm
            how_now = {"comm": comm, "compression": compression, "seed": 9, **how}
            mpisign.DistributedOptimizer(optimizer, net.named_parameters(), **how_now)
            for step in range(steps):
                optimizer.zero_grad()
                loss_of(net, step, data).backward()
                optimizer.step()
            grads = {n: p.grad for n, p in net.named_parameters()}
            return net.state_dict(), grads, optimizer.state_dict()["mpisign"]

        return f"optimizer/{name}", case

    for name in NAMES:
        if name == "detox" and size < 3:
            continue
        yield train(f"{name}/plain", name)
        yield train(f"{name}/overlap", name, overlap=True)
        yield train(f"{name}/buckets", name, bucket_size=500, skip=None)
        yield train(f"{name}/overlap buckets", name, overlap=True, bucket_size=500)
    for name, compressor in SETTINGS.items():
        steps = 4 if "local" in name else 3
        yield train(f"{name}/plain", compressor, steps)
        if "local" not in name:
            yield train(f"{name}/overlap", compressor, overlap=True)
    for algorithm in ("allgather", "alltoall", "hierarchical", "vote_of_votes"):
        yield train(f"signum/{algorithm}", "signum", algorithm=algorithm)
    yield train("signum/bfloat16", "signum", dtype=torch.bfloat16)
    yield train("ef_sign/bfloat16", "ef_sign", dtype=torch.bfloat16)
    yield train("lion/float64", "lion", dtype=torch.float64)
    if size > 2:
        yield train("signum/byzantine", "signum", byzantine_f=1)
        for inner in ("sign", "signum", "lion", "robust"):
            detoxed = c.Detox(inner=inner, placement=partition(size))
            yield train(f"detox {inner}/plain", detoxed)
            yield train(f"detox {inner}/overlap", detoxed, overlap=True)
    for rule in ("median", "krum", "nnm+trimmed_mean", "centered_clipping"):
        yield train(f"robust {rule}", c.Robust(rule))

    def resumed(w: Any) -> Any:
        found = []
        for name in ("signum", "ef_sign", "onebit", "lion_avg"):
            net, saved = Net(), None
            for step in range(4):
                if step % 2 == 0:
                    optimizer = torch.optim.SGD(net.parameters(), lr=0.02)
                    mpisign.DistributedOptimizer(optimizer, comm=w.comm, compression=name)
                    if saved:
                        optimizer.load_state_dict(saved)
                optimizer.zero_grad()
                loss_of(net, step, w.rank).backward()
                optimizer.step()
                saved = optimizer.state_dict()
            found.append((net.state_dict(), saved["mpisign"]))
        return found

    yield "optimizer/resumed", resumed


def local() -> Cases:
    """Functions of one process: planes, rules, attacks, assignments."""

    def pack(w: Any) -> Any:
        found = []
        for n in LENGTHS[:-1]:
            for dtype in DTYPES:
                x = values(n, dtype, 1)
                for zeros in ("positive", "random", "abstain"):
                    p = mpisign.pack(x, zeros=zeros, seed=3, step=2, rank=1)
                    found += [p, mpisign.unpack(p, n)]
        return found

    def majorities(w: Any) -> Any:
        found = []
        for n in LENGTHS[:-1]:
            for rows in (1, 2, 3, 8, 17):
                xs = [values(n, "float32", r) for r in range(rows)]
                for ties in ("positive", "random", "zero"):
                    for zeros in ("random", "abstain"):
                        stack = np.stack(
                            [mpisign.pack(x, zeros=zeros, rank=r) for r, x in enumerate(xs)]
                        )
                        found.append(mpisign.majority(stack, ties=ties, length=n, seed=4))
        return found

    yield "local/pack", pack
    yield "local/majority", majorities
    for name in robust.RULES:
        for mixing in ("", "nnm+", "bucketing+", "clipping+"):

            def rule(w: Any, name: str = mixing + name) -> Any:
                found = []
                for n, d, f in ((5, 33, 1), (12, 1000, 2), (7, 5000, 1)):
                    for dtype in DTYPES:
                        rows = values(n * d, dtype, f).reshape(n, d)
                        np.random.seed(0)
                        made = robust.by_name(name, f)
                        found.append(made(rows) if "bucketing" not in name else repr(made))
                return found

            yield f"local/rule {mixing}{name}", rule
    for name in attacks.ATTACKS:

        def attack(w: Any, name: str = name) -> Any:
            rows = values(7 * 1000, "float32", 2).reshape(7, 1000)
            return [attacks.by_name(name)(rows) if name not in ("random", "gaussian") else name]

        yield f"local/attack {name}", attack

    def assigned(w: Any) -> Any:
        nodes = [[0, 1, 2], [3, 4, 5], [6, 7]]
        places = ("spread", "packed")
        return [detox.assign(8, 3, p, nodes, seed=s) for p in places for s in range(5)]

    yield "local/assign", assigned
