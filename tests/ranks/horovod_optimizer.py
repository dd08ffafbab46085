"""mpisign.horovod.DistributedOptimizer: what users of Horovod's rely on, and what it adds.

One launch, all checks: see horovod_checks.py. Arguments: ranks, and checks' names (default all).
"""

from __future__ import annotations

import copy
import io
import sys
import warnings

import horovod.torch as hvd
import numpy as np
import torch
from horovod_checks import (
    SHAPES,
    backward,
    check,
    digest,
    finish,
    gradient,
    parameters,
    raises,
    same_everywhere,
    tally,
    uses,
)

import mpisign
from mpisign.compressors import COMPRESSORS, Compression, Sign, Signum
from mpisign.errors import CollectiveError
from mpisign.horovod import Compression as ForHorovod
from mpisign.horovod import DistributedOptimizer

N = int(sys.argv[1])
NAMES = [name for name in COMPRESSORS if name != "none" and (name != "detox" or N > 2)]
EXACT = Sign(zeros="abstain", ties="zero", nan="abstain")


def network(seed=0):
    torch.manual_seed(seed)
    layers = [torch.nn.Linear(7, 13), torch.nn.ReLU(), torch.nn.Linear(13, 9)]
    return torch.nn.Sequential(*layers, torch.nn.Linear(9, 3))


def loss(net, step, rank=None):
    seed = 1000 * step + (hvd.rank() if rank is None else rank)
    x = torch.randn(4, 7, generator=torch.Generator().manual_seed(seed))
    return (net(x) - x[:, :3]).square().mean()


def take(net, optimizer, steps, first=0):
    for step in range(first, first + steps):
        optimizer.zero_grad()
        loss(net, step).backward()
        optimizer.step()


def ours(net, lr=0.01, inner=torch.optim.SGD, **options):
    return DistributedOptimizer(
        inner(net.parameters(), lr=lr), named_parameters=net.named_parameters(), **options
    )


def settings_of(name):
    """Of Accordion: the high compression from the third step on."""
    if name != "accordion":
        return {}, {}
    return {"every": 1, "steps_per_epoch": 1, "threshold": 100.0}, {"skip": None}


def every_compressor():
    """Replicas, and the same bits as from the optimizer for plain MPI over the same wire."""
    for name in NAMES:
        net, other = network(), network()
        before = digest(net.parameters())
        settings, skip = settings_of(name)
        compression = COMPRESSORS[name](**settings)
        take(net, ours(net, compression=compression, bucket_size=150, **skip), 5)
        sgd = torch.optim.SGD(other.parameters(), lr=0.01)
        mpisign.DistributedOptimizer(
            sgd,
            other.named_parameters(),
            comm=hvd.global_process_set,
            compression=compression,
            overlap=True,
            bucket_size=150,
            **skip,
        )
        take(other, sgd, 5)
        after = digest(net.parameters())
        check(
            f"{name}: moves as by mpisign.DistributedOptimizer", after == digest(other.parameters())
        )
        check(f"{name}: moves", after != before)
        same_everywhere(f"{name}: replicas", after)


def ballots(name, step, passes, unused):
    votes = []
    for r in range(N):
        total = torch.zeros_like(gradient(name, r, 0))
        for k in range(passes):
            if uses(name, r, passes * step + k, unused):
                total = total + gradient(name, r, passes * step + k)
        votes.append(total.to(torch.float64).numpy())
    return votes


def any_order(label, passes=1, unused=True, bucket_size=200, **options):
    """Every dtype and awkward sizes, reached in an order of each rank's own, some of them not."""
    named = parameters()
    optimizer = DistributedOptimizer(
        torch.optim.SGD([p for _, p in named], lr=0.5),
        named_parameters=named,
        compression=EXACT,
        backward_passes_per_step=passes,
        bucket_size=bucket_size,
        **options,
    )
    wrong = []
    for step in range(3):
        optimizer.zero_grad()
        for k in range(passes):
            backward(named, hvd.rank(), passes * step + k, unused=unused)
        optimizer.synchronize()
        for name in SHAPES:
            expected, _ = tally(ballots(name, step, passes, unused), "abstain", "zero")
            got = dict(named)[name].grad.to(torch.float64).numpy()
            if not np.array_equal(got, expected):
                wrong.append((step, name))
        with optimizer.skip_synchronize():
            optimizer.step()
    check(label, not wrong, f"wrong: {wrong}")
    same_everywhere(f"{label}: replicas", digest(p for _, p in named))


def orders():
    any_order("orders")
    any_order("orders: two passes", passes=2)
    any_order("orders: one bucket", bucket_size=None)
    any_order("orders: groups", groups=2)
    any_order("orders: predivide", gradient_predivide_factor=3.0)


def groups():
    net = network()
    parts = list(net.parameters())
    ours(net, groups=[parts[:2], parts[2:3]], compression=EXACT)
    twice = [parts[:2], parts[1:2]]
    raises("groups: twice", ValueError, "once in groups", lambda: ours(net, groups=twice))
    raises("groups: negative", ValueError, "groups should be", lambda: ours(net, groups=-1))


def nobody_uses():
    a, b = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(5))
    frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    named = [("a", a), ("b", b), ("frozen", frozen)]
    optimizer = DistributedOptimizer(
        torch.optim.SGD([a, b, frozen], lr=1.0, weight_decay=0.5), named, EXACT
    )
    a.sum().backward()
    optimizer.step()
    check("used by all", bool((a == -0.5).all()))
    check(
        "used by none: left alone", b.grad is None and bool((b == 1).all() and (frozen == 1).all())
    )


def clipping():
    net = network()
    optimizer = ours(net, compression=EXACT, changed_votes="allow")
    loss(net, 0).backward()
    optimizer.synchronize()
    before = [p.grad.clone() for p in net.parameters()]
    torch.nn.utils.clip_grad_norm_(net.parameters(), 0.1)
    after = [p.grad.clone() for p in net.parameters()]
    start = [p.detach().clone() for p in net.parameters()]
    with optimizer.skip_synchronize():
        optimizer.step()
    norm = torch.linalg.vector_norm(torch.cat([g.flatten() for g in after]))
    moved = all(
        torch.equal(p, s - 0.01 * g) for p, s, g in zip(net.parameters(), start, after, strict=True)
    )
    check("clipped votes", bool(norm < 0.11) and moved)
    check("synchronize makes votes", all(bool(g.abs().le(1).all()) for g in before))
    optimizer.zero_grad()
    loss(net, 1).backward()
    optimizer.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer.step()
    check(
        "synchronize, then step: warns", any("skip_synchronize" in str(w.message) for w in caught)
    )
    same_everywhere("clipping: replicas", digest(net.parameters()))


def assertions():
    net = network()
    optimizer = ours(net, compression=EXACT)
    loss(net, 0).backward()
    raises("zero_grad after backward", AssertionError, "race condition", optimizer.zero_grad)
    raises("too many backwards", AssertionError, "more than", lambda: loss(net, 1).backward())
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    check("zero_grad(set_to_none=False)", bool((net[0].weight.grad == 0).all()))
    optimizer.zero_grad()
    check("zero_grad", net[0].weight.grad is None)
    optimizer.set_backward_passes_per_step(2)
    loss(net, 2).backward()
    loss(net, 3).backward()
    optimizer.step()
    loss(net, 4).backward()  # and a step too early, which sums up what there is
    optimizer.step()
    same_everywhere("assertions: replicas", digest(net.parameters()))
    check("the class is the optimizer's", isinstance(optimizer, torch.optim.SGD))
    torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5).step()
    check("schedulers", optimizer.param_groups[0]["lr"] == 0.005)


def doors():
    net = network()
    refused = {
        "op": dict(op=hvd.Adasum),
        "compression": dict(compression="signup"),
        "skip": dict(skip="some"),
        "seed": dict(seed=-1),
        "bucket_size": dict(bucket_size=0),
        "algorithm": dict(algorithm="fast"),
        "backward_passes_per_step": dict(backward_passes_per_step=0),
    }
    for name, options in refused.items():
        raises(f"door: {name}", (ValueError, TypeError), name, lambda o=options: ours(net, **o))
    one = [next(net.named_parameters())]
    sgd = torch.optim.SGD(net.parameters(), lr=0.1)
    raises("door: names", ValueError, "not named", lambda: DistributedOptimizer(sgd, one))
    raises("door: twice", ValueError, "already", lambda: DistributedOptimizer(ours(net)))
    for given in ("none", hvd.Compression.none, hvd.Compression.fp16):
        plain = ours(network(), compression=given)
        check(f"{given}: Horovod's own", not hasattr(plain, "_mpisign"))


def errors():
    """What raises does so on every rank, and the optimizer goes on afterwards."""
    net = network()
    optimizer = ours(net, compression=EXACT.__class__(zeros="abstain"), bucket_size=100)
    take(net, optimizer, 1)
    closure = (lambda: None) if hvd.rank() == 0 else None
    raises("a closure", CollectiveError, "closure", lambda: optimizer.step(closure))
    take(net, optimizer, 2)
    same_everywhere("after an error: replicas", digest(net.parameters()))


def states():
    """13 steps, and from a file after 7 on, the same, with each rank's own momenta."""
    sgd, adam = torch.optim.SGD, torch.optim.Adam
    ways = {"ef_sign": adam, "onebit": adam}
    rounds = [Compression.ef_sparsign(local_steps=3, local_lr=rate) for rate in (None, 1e-3)]
    for compression, inner in {**ways, **dict.fromkeys(rounds, sgd)}.items():
        net = network()
        optimizer = ours(net, compression=compression, seed=4, inner=inner)
        take(net, optimizer, 7)
        file = io.BytesIO()
        torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict()}, file)
        take(net, optimizer, 6, first=7)
        again = network(seed=1)
        resumed = ours(again, compression=compression, seed=4, inner=inner)
        saved = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
        again.load_state_dict(saved["net"])
        resumed.load_state_dict(copy.deepcopy(saved["optimizer"]))
        take(again, resumed, 6, first=7)
        same = digest(net.parameters()) == digest(again.parameters())
        check(f"{compression}: continues from a file bit for bit", same)
    states = optimizer.state_dict()["mpisign"]["state"]
    check("state by name", set(states) == {n for n, _ in net.named_parameters()})


def broadcasts():
    """Rank 0 alone loads a file; Horovod sends what it knows of, and all go on."""
    net = network(seed=hvd.rank())
    hvd.broadcast_parameters(net.state_dict(), root_rank=0)
    optimizer = ours(net, compression="signum", inner=torch.optim.Adam, lr=0.01 * (1 + hvd.rank()))
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)  # before the first step
    take(net, optimizer, 4)
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    saved = copy.deepcopy((net.state_dict(), optimizer.state_dict()))
    again = network(seed=hvd.rank())
    resumed = ours(again, compression="signum", inner=torch.optim.Adam)
    if hvd.rank() == 0:
        again.load_state_dict(saved[0])
        resumed.load_state_dict(saved[1])
    hvd.broadcast_parameters(again.state_dict(), root_rank=0)
    hvd.broadcast_optimizer_state(resumed, root_rank=0)
    take(again, resumed, 4, first=4)
    same_everywhere("broadcast: replicas", digest(again.parameters()))
    check("broadcast: steps", resumed.state_dict()["mpisign"]["steps"] == 8)
    plain = torch.optim.SGD(network().parameters(), lr=0.1)
    raises(
        "a state of another model",
        ValueError,
        "no parameter is named",
        lambda: ours(torch.nn.Linear(2, 2)).load_state_dict(
            {**plain.state_dict(), **{"mpisign": saved[1]["mpisign"]}}
        ),
    )


def process_sets(pair):
    net = network()
    optimizer = ours(net, compression=EXACT, process_set=pair)
    loss(net, 0).backward()
    raw = net[0].weight.grad.clone()
    optimizer.step()
    if pair.included():
        signs = torch.zeros_like(raw)
        for r in pair.ranks:
            other = network()
            loss(other, 0, r).backward()
            signs += other[0].weight.grad.sign()
        check("process set: votes", torch.equal(net[0].weight.grad, signs.sign()))
        same_everywhere("process set: replicas", digest(net.parameters()), pair)
    else:
        check("process set: others are left alone", torch.equal(net[0].weight.grad, raw))
    state = optimizer.state_dict()
    optimizer.load_state_dict(state)


def sums():
    """op=Sum sums what is no vote."""
    grads = {}
    for op in (hvd.Average, hvd.Sum):
        for compression in ("terngrad", EXACT):
            net = network()
            optimizer = ours(net, compression=compression, op=op, seed=3)
            loss(net, 0).backward()
            optimizer.synchronize()
            grads[op, compression] = net[0].weight.grad
    check(
        "Sum of means", torch.equal(grads[hvd.Sum, "terngrad"], N * grads[hvd.Average, "terngrad"])
    )
    check("Sum of votes", torch.equal(grads[hvd.Sum, EXACT], grads[hvd.Average, EXACT]))


def sparse():
    """Sparse gradients as Horovod sends them, also where a rank has none; or as votes."""
    for dense in (False, True):
        torch.manual_seed(0)
        net = torch.nn.Embedding(10, 3, sparse=True)
        other = torch.nn.Parameter(torch.ones(4))
        optimizer = DistributedOptimizer(
            torch.optim.SGD([*net.parameters(), other], lr=0.1),
            [("w", net.weight), ("other", other)],
            EXACT,
            sparse_as_dense=dense,
        )
        for step in range(2):
            optimizer.zero_grad()
            if step == 0 or hvd.rank() == 0:
                ((2 * net(torch.tensor([1, 2, 2 + hvd.rank()]))).sum() + other.sum()).backward()
            optimizer.step()
        got = net.weight.grad.to_dense()
        expected = torch.zeros(10, 3)
        expected[1], expected[2] = (1, 1) if dense else (2 / N, 4 / N)
        check(f"sparse gradients, as dense: {dense}", torch.allclose(got, expected), str(got))
        same_everywhere(f"sparse, as dense: {dense}: replicas", digest([net.weight, other]))


def skips():
    """A rule of one's own."""
    torch.manual_seed(0)
    net = torch.nn.Sequential()
    net.add_module("embed", torch.nn.Embedding(10, 3))
    net.add_module("out", torch.nn.Linear(3, 2))
    before = net.embed.weight.detach().clone()
    rule = {"skip": lambda name, p: "16bit" if p.dim() == 1 else "abstain"}
    optimizer = ours(net, compression="signum", **rule)
    net(torch.tensor([1, 2])).square().sum().backward()
    optimizer.step()
    same = torch.equal(net.embed.weight[3:], before[3:])
    check("rows that nobody looked up stay", same and not torch.equal(net.embed.weight, before))
    same_everywhere("skips: replicas", digest(net.parameters()))


def handed_over():
    """A compression of the unmodified optimizer's is taken for what it compresses by."""
    net, other = network(), network()
    take(net, ours(net, compression=ForHorovod.signum(momentum=0.5, seed=7)), 3)
    take(other, ours(other, compression=Signum(momentum=0.5), seed=7), 3)
    check("Compression.signum()", digest(net.parameters()) == digest(other.parameters()))


def under_horovods():
    """Every compressor under the unmodified optimizer: the same bits as over plain MPI."""
    for name in NAMES:
        net, other = network(), network()
        before = digest(net.parameters())
        named = list(net.named_parameters())
        settings, skip = settings_of(name)
        optimizer = hvd.DistributedOptimizer(
            torch.optim.SGD(net.parameters(), lr=0.01),
            named_parameters=named,
            compression=getattr(ForHorovod, name)(named, seed=5, **settings, **skip),
        )
        in_order = sorted(other.named_parameters())
        sgd = torch.optim.SGD([p for _, p in in_order], lr=0.01)
        comm = hvd.global_process_set
        compression = COMPRESSORS[name](**settings)
        mpisign.DistributedOptimizer(
            sgd, in_order, comm=comm, compression=compression, seed=5, **skip
        )
        for step in range(3):
            optimizer.param_groups[0]["lr"] = sgd.param_groups[0]["lr"] = 0.01 / (1 + step)
            take(net, optimizer, 1, first=step)
            take(other, sgd, 1, first=step)
        after = digest(net.parameters())
        check(
            f"hvd, {name}: as by mpisign.DistributedOptimizer", after == digest(other.parameters())
        )
        check(f"hvd, {name}: moves", after != before)
        same_everywhere(f"hvd, {name}: replicas", after)


def counters():
    """Compressions as they come: counters, or an error that helps."""
    for name in NAMES:
        net = network()
        optimizer = hvd.DistributedOptimizer(
            torch.optim.SGD(net.parameters(), lr=0.01),
            named_parameters=net.named_parameters(),
            compression=getattr(ForHorovod, name),
        )
        if name != "detox" and COMPRESSORS[name]().aggregate in ("vote", "gathered_vote"):
            take(net, optimizer, 2)
            same_everywhere(f"counters, {name}: replicas", digest(net.parameters()))
            continue
        text = f"Compression.{name}(model.named_parameters())"
        raises(f"counters, {name}", TypeError, text, lambda n=net: loss(n, 0).backward())
        optimizer._handles.clear()
    raises(
        "local steps",
        ValueError,
        "mpisign.horovod.DistributedOptimizer",
        lambda: ForHorovod.ef_sparsign(network().named_parameters(), local_steps=2),
    )


def two_optimizers():
    """One backward pass through two models, whose layers each rank reaches in its own order."""
    nets = [network(0), network(1)]
    optimizers = [ours(net, compression=EXACT, bucket_size=100) for net in nets]
    for step in range(3):
        for optimizer in optimizers:
            optimizer.zero_grad()
        for i in (0, 1) if hvd.rank() % 2 else (1, 0):
            loss(nets[i], step).backward()
        for optimizer in optimizers:
            optimizer.step()
    for i, net in enumerate(nets):
        same_everywhere(f"two optimizers: replicas {i}", digest(net.parameters()))


def joins():
    """A rank runs out of data: the others hear of it before anything breaks, and join as well."""
    net = network()
    optimizer = ours(net, compression=EXACT, bucket_size=100)
    take(net, optimizer, 2)
    if hvd.rank() != 1:
        text = "rank 1 called hvd.join, which Horovod's alltoall cannot do without"
        raises("a joined rank", CollectiveError, text, lambda: take(net, optimizer, 1))
    hvd.join()
    take(net, optimizer, 1, first=3)
    same_everywhere("after joins: replicas", digest(net.parameters()))


def main():
    pair = hvd.ProcessSet([0, 2]) if N > 2 else None
    hvd.init(process_sets=[pair] if pair else [])
    torch.set_num_threads(1)
    wanted = sys.argv[2:]
    checks = [
        every_compressor, orders, groups, nobody_uses, clipping, assertions, doors, errors, states,
        broadcasts, sums, sparse, skips, handed_over, under_horovods, counters,
        two_optimizers, joins,
    ]  # fmt: skip
    for function in checks:
        if not wanted or function.__name__ in wanted:
            function()
    if pair and (not wanted or "process_sets" in wanted):
        process_sets(pair)
    finish()


main()
