"""Parameters of other kinds, embeddings, later ones, warm-up: under every way to use Horovod."""

from __future__ import annotations

import warnings

import horovod.torch as hvd
import horovod_checks as checks
import torch

import mpisign
import mpisign.horovod as mh
from mpisign.compressors import Signum
from mpisign.errors import CollectiveError

WAYS = ("ours", "names", "no names")
EXACT = {"momentum": 0.5, "zeros": "abstain", "ties": "zero"}


def wrapped(way, net, inner=None, lr=0.01, warmup_steps=0, **settings):
    settings = {**EXACT, **settings}
    inner = torch.optim.SGD(net.parameters(), lr=lr) if inner is None else inner
    if way == "ours":
        c, options = Signum(**settings), {"bucket_size": 50, "warmup_steps": warmup_steps}
        return mh.DistributedOptimizer(inner, net.named_parameters(), c, **options)
    named = [net.named_parameters()] if way == "names" else []
    compression = mh.Compression.signum(*named, warmup_steps=warmup_steps, **settings)
    return hvd.DistributedOptimizer(inner, net.named_parameters(), compression=compression)


class Phases(torch.nn.Module):
    def __init__(self, dtype):
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Linear(4, 4)
        self.last = torch.nn.Parameter(torch.ones(4, 4, dtype=dtype))

    def forward(self, x):
        return (self.first(x).to(self.last.dtype) @ self.last).abs().sum()


def unfit():
    for way in WAYS:
        for ranks in (range(hvd.size()), [1]):
            net = Phases(torch.cfloat if hvd.rank() in ranks else torch.float32)
            before = [p.detach().clone() for p in net.parameters()]
            optimizer = wrapped(way, net)
            label = f"{way}: complex on {len(ranks)}"

            def step(net=net, optimizer=optimizer):
                net(torch.ones(3, 4)).backward()
                optimizer.step()

            text = "rank 1: " if len(ranks) == 1 else "float32, float16"
            checks.same_everywhere(label, checks.raises(label, CollectiveError, text, step))
            checks.check(f"{label}: nothing moved", all(map(torch.equal, before, net.parameters())))
            mpisign.unwrap(optimizer)
            hvd.barrier()


class Words(torch.nn.Module):
    def __init__(self, sparse=False):
        super().__init__()
        torch.manual_seed(0)
        self.tok = torch.nn.Embedding(31, 5, padding_idx=0, sparse=sparse)
        self.head = torch.nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.tok(x)).logsumexp(-1).mean()


def embeddings():
    for way in WAYS:
        net = Words()
        optimizer = wrapped(way, net, zeros="random", ties="random")
        wrong = []
        for step in range(4):
            before = net.tok.weight.detach().clone()
            used = [[1 + (7 * step + 4 * r + i) % 20 for i in range(3)] for r in range(hvd.size())]
            optimizer.zero_grad()
            net(torch.tensor([0, *used[hvd.rank()]])).backward()
            optimizer.step()
            moved = (net.tok.weight.detach() != before).any(1).nonzero().flatten().tolist()
            if set(moved) != {row for rows in used for row in rows}:
                wrong.append((step, moved))
        checks.check(f"{way}: rows that nobody looked up stay", not wrong, str(wrong))
        checks.same_everywhere(f"{way}: replicas", checks.digest(net.parameters()))
        mpisign.unwrap(optimizer)
    net = Words(sparse=True)
    before = net.tok.weight.detach().clone()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    optimizer = hvd.DistributedOptimizer(
        optimizer, net.named_parameters(), mh.Compression.sign, sparse_as_dense=True
    )
    for _ in range(3):
        optimizer.zero_grad()
        net(torch.tensor([1 + hvd.rank(), 7])).backward()
        optimizer.step()
    moved = (net.tok.weight.detach() != before).any(1).nonzero().flatten().tolist()
    checks.check("sparse_as_dense: rows stay", moved == [*range(1, 1 + hvd.size()), 7], str(moved))


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.frozen = torch.nn.Linear(6, 6).requires_grad_(False)
        self.stays = torch.nn.Linear(6, 3)

    def forward(self, x):
        return self.stays(self.frozen(x).tanh()).square().mean()


def loss_of(net, step, rank):
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(100 * step + rank))
    return net(x)


def by_hand(steps, change, forgets=False, warmup_steps=0):
    """``Net`` by Signum's equation, its first layer unfrozen before the step ``change``."""
    net, momenta = Net(), {}
    for step in range(steps):
        if step == change:
            net.requires_grad_(True)
            momenta = {} if forgets else momenta
        votes, sums = {}, {}
        for rank in range(hvd.size()):
            net.zero_grad()
            loss_of(net, step, rank).backward()
            for name, p in net.named_parameters():
                if p.grad is not None:
                    m = momenta.get((rank, name), torch.zeros_like(p)) * 0.5 + p.grad * 0.5
                    momenta[rank, name] = m
                    votes[name] = votes.get(name, 0) + m.sign()
                    sums[name] = sums.get(name, 0) + p.grad
        with torch.no_grad():
            for name, vote in votes.items():
                move = sums[name] / hvd.size() if step < warmup_steps else vote.sign()
                net.get_parameter(name).sub_(0.01 * move)
    return list(net.parameters())


def train(net, optimizer, steps):
    for step in steps:
        optimizer.zero_grad()
        loss_of(net, step, hvd.rank()).backward()
        optimizer.step()


def later_parameters():
    for way in WAYS:
        net = Net()
        optimizer = wrapped(way, net)
        train(net, optimizer, range(3))
        net.requires_grad_(True)
        before = [p.detach().clone() for p in net.parameters()]
        label = f"{way}: unfrozen"
        kinds = (CollectiveError, RuntimeError)
        text = checks.raises(
            label, kinds, "mpisign.unwrap(optimizer)", lambda n=net, o=optimizer: train(n, o, [3])
        )
        checks.same_everywhere(label, text)
        checks.check(f"{label}: nothing moved", all(map(torch.equal, before, net.parameters())))

    net = Net()
    optimizer = wrapped("ours", net)
    train(net, optimizer, range(3))
    net.requires_grad_(True)
    plain = mpisign.unwrap(optimizer)
    checks.check("unwrapped", type(plain) is torch.optim.SGD and plain is optimizer)
    optimizer = wrapped("ours", net, plain)
    train(net, optimizer, range(3, 6))
    same = all(map(torch.equal, net.parameters(), by_hand(6, 3)))
    checks.check("wrapped again: goes on with its momenta", same)
    checks.check("wrapped again: steps", optimizer.state_dict()["mpisign"]["steps"] == 6)

    net = Net()
    old = optimizer = wrapped("ours", net)
    train(net, optimizer, range(3))
    net.requires_grad_(True)
    optimizer = wrapped("ours", net)  # a new torch optimizer, while the old one is alive
    train(net, optimizer, range(3, 6))
    same = all(map(torch.equal, net.parameters(), by_hand(6, 3, forgets=True)))
    checks.check("a new wrapper takes over", same)
    text = checks.raises("the old one", CollectiveError, "has taken over", old.step)
    checks.same_everywhere("the old one", text)


def warm_up():
    for way in WAYS:
        net = Net()
        optimizer = wrapped(way, net, warmup_steps=3)
        train(net, optimizer, range(2))
        kept = (optimizer if way == "ours" else optimizer._compression).state_dict()
        mpisign.unwrap(optimizer)
        again = wrapped(way, net, warmup_steps=3)  # in the middle, from what was saved
        (again if way == "ours" else again._compression).load_state_dict(kept)
        train(net, again, range(2, 6))
        wanted = by_hand(6, None, warmup_steps=3)
        close = all(
            torch.allclose(p, w, rtol=0, atol=1e-6)
            for p, w in zip(net.parameters(), wanted, strict=True)
        )
        checks.check(f"{way}: averages, then votes", close)
        checks.same_everywhere(f"{way}: replicas", checks.digest(net.parameters()))
        mpisign.unwrap(again)
    net = Net()
    optimizer = wrapped("ours", net, warmup_steps=hvd.rank())
    text = checks.raises(
        "warmup_steps", CollectiveError, "warmup_steps", lambda: train(net, optimizer, [0])
    )
    checks.same_everywhere("warmup_steps", text)


def main():
    hvd.init()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for check in (unfit, embeddings, later_parameters, warm_up):
        check()
        hvd.barrier()
    checks.finish()


main()
