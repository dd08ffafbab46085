"""A small model, its losses, and what training by votes must make of it."""

from __future__ import annotations

import copy
import functools
import math

import torch


class Net(torch.nn.Module):
    """Odd sizes; ``extra`` is used where ``forward`` is told to, ``never`` never."""

    def __init__(self, seed=0, extra=False):
        super().__init__()
        torch.manual_seed(seed)
        self.last = torch.nn.Linear(13, 3)
        self.first = torch.nn.Linear(7, 13)
        self.middle = torch.nn.Linear(13, 13, bias=False)
        if extra:
            self.extra = torch.nn.Linear(13, 13, bias=False)
            self.never = torch.nn.Linear(2, 1, bias=False)

    def forward(self, x, extra=False):
        x = self.middle(self.first(x).tanh()).tanh()
        return self.last(self.extra(x) if extra else x)


def batch(step, rank):
    return torch.randn(4, 7, generator=torch.Generator().manual_seed(1000 * step + rank))


def loss(model, step, rank, **options):
    """Another one on every rank and in every step."""
    x = batch(step, rank)
    return (model(x, **options) - x[:, :3]).square().mean()


class Expected:
    """What a model must become: the majority of all ranks' signs, or of their momenta's.

    Plays the ranks by torch alone. ``beta``: of Signum's momentum, 0 for Sign. ``density``: the
    share of each tensor's coordinates that a rank votes on, the largest.
    """

    def __init__(self, world, net, beta=0.0, lr=0.125, density=None):
        self.world, self.net, self.beta, self.lr = world, copy.deepcopy(net), beta, lr
        self.density = density or 1.0
        self.momenta = [{} for _ in range(world.size)]

    def gradients(self, *losses):
        """Every rank's own gradients of the sum of its losses, by name; zeros where it has none."""
        self.net.zero_grad()
        for function in losses:
            function(self.net).backward()
        mine = {n: p.grad for n, p in self.net.named_parameters()}
        return self.world.gather(mine)

    def train(self, *losses, skip=()):
        every = self.gradients(*losses)
        with torch.no_grad():
            for name, p in self.net.named_parameters():
                if name in skip or all(g[name] is None for g in every):
                    continue
                total = torch.zeros_like(p)
                for g, momenta in zip(every, self.momenta, strict=True):
                    grad = torch.zeros_like(p) if g[name] is None else g[name]
                    m = momenta.setdefault(name, torch.zeros_like(p))
                    m.mul_(self.beta).add_(grad, alpha=1 - self.beta)
                    largest = m.abs().flatten().topk(math.ceil(self.density * m.numel())).values
                    total += m.sign().masked_fill(m.abs() < largest[-1], 0)
                p.sub_(self.lr * total.sign())

    def check(self, wrapped, what=""):
        """The parameters are these, bit for bit."""
        got = wrapped.parameters()
        for name, p in self.net.named_parameters():
            same = torch.equal(got[name], p.detach())
            off = int((got[name] != p.detach()).sum())
            assert same, f"{what}: {off} of {p.numel()} coordinates of {name} are wrong"


def at(world, step, **options):
    """A function of a model: this rank's loss in a step."""
    return functools.partial(loss, step=step, rank=world.rank, **options)
