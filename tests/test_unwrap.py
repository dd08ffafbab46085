"""Parameters that come later: unwrapped and wrapped again, or the same error on every rank."""

from __future__ import annotations

import pytest
import torch

import mpisign
from mpisign import simulation
from mpisign.compressors import EFSparsign, Signum
from mpisign.errors import CollectiveError

EXACT = Signum(momentum=0.5, zeros="abstain", ties="zero")


class Net(torch.nn.Module):
    """``frozen`` first, later ``added``."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stays = torch.nn.Linear(7, 13)
        self.frozen = torch.nn.Linear(13, 13).requires_grad_(False)
        self.added = torch.nn.Linear(13, 3)

    def forward(self, x):
        return self.added(self.frozen(self.stays(x).tanh()).tanh()).square().mean()


def gradients(net, optimizer, step, rank):
    optimizer.zero_grad()
    x = torch.randn(4, 7, generator=torch.Generator().manual_seed(100 * step + rank))
    net(x).backward()


def reference(size, steps, change):
    """{name: value} and the momenta after ``steps``, by Signum's equation; all alike on all."""
    net = Net()
    net.added.requires_grad_(False)
    momenta = {}
    for step in range(steps):
        if step == change:
            net.requires_grad_(True)
        votes = {}
        for rank in range(size):
            gradients(net, torch.optim.SGD(net.parameters()), step, rank)
            for name, p in net.named_parameters():
                if p.grad is not None and p.requires_grad:
                    m = momenta.get((rank, name), torch.zeros_like(p))
                    momenta[rank, name] = m = m * 0.5 + p.grad * 0.5
                    votes[name] = votes.get(name, 0) + m.sign()
        with torch.no_grad():
            for name, vote in votes.items():
                net.get_parameter(name).sub_(0.01 * vote.sign())
    return net


@pytest.mark.parametrize("overlap", [False, True])
def test_wrapped_again_it_goes_on(overlap):
    def run(comm):
        net = Net()
        net.added.requires_grad_(False)
        optimizer = torch.optim.SGD([*net.stays.parameters(), *net.frozen.parameters()], lr=0.01)
        for step in range(6):
            if step == 3:
                assert mpisign.unwrap(optimizer) is optimizer
                assert "mpisign" not in optimizer.state_dict()
                net.requires_grad_(True)
                optimizer.add_param_group({"params": net.added.parameters()})
            if step in (0, 3):
                mpisign.DistributedOptimizer(
                    optimizer, net.named_parameters(), comm=comm, compression=EXACT,
                    overlap=overlap, bucket_size=100,
                )  # fmt: skip
            gradients(net, optimizer, step, comm.rank)
            optimizer.step()
        assert optimizer.state_dict()["mpisign"]["steps"] == 6
        return [p.detach() for p in net.parameters()]

    wanted = [p.detach() for p in reference(3, 6, 3).parameters()]
    for got in simulation.run(3, run, timeout=20):
        assert all(map(torch.equal, got, wanted))


@pytest.mark.parametrize("overlap", [False, True])
def test_what_comes_without_it_is_refused_on_all_ranks(overlap):
    def run(comm, ranks):
        net = Net()
        optimizer = torch.optim.SGD(net.stays.parameters(), lr=0.01)
        mpisign.DistributedOptimizer(
            optimizer, comm=comm, compression=EXACT, overlap=overlap, bucket_size=50
        )
        gradients(net, optimizer, 0, comm.rank)
        optimizer.step()
        before = [p.detach().clone() for p in net.parameters()]
        if comm.rank in ranks:
            optimizer.add_param_group({"params": net.added.parameters()})
        with pytest.raises(CollectiveError, match=r"mpisign.unwrap\(optimizer\)") as error:
            gradients(net, optimizer, 1, comm.rank)
            optimizer.step()
        assert all(map(torch.equal, before, net.parameters()))
        return str(error.value)

    for ranks, named in (((0, 1, 2), "ranks 0-2: "), ((1,), "rank 1: ")):
        errors = simulation.run(3, run, ranks, timeout=20)
        assert len(set(errors)) == 1 and named in errors[0], errors


def test_a_frozen_parameter_is_taken_in_by_itself():
    """The optimizer has it from the beginning."""

    def run(comm, overlap):
        net = Net()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        mpisign.DistributedOptimizer(optimizer, comm=comm, compression=EXACT, overlap=overlap)
        for step in range(4):
            net.frozen.requires_grad_(step > 1)
            gradients(net, optimizer, step, comm.rank)
            optimizer.step()
        return [p.detach() for p in net.parameters()]

    for overlap in (False, True):
        first, second = simulation.run(2, run, overlap, timeout=20)
        assert all(map(torch.equal, first, second))
        assert not torch.equal(first[2], Net().frozen.weight)


def test_what_cannot_be_unwrapped():
    p = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([p], lr=0.1)
    for wrong in (optimizer, p):
        with pytest.raises(TypeError, match="must be one that DistributedOptimizer returned"):
            mpisign.unwrap(wrong)
    mpisign.DistributedOptimizer(optimizer)
    with pytest.raises(ValueError, match=r"mpisign.unwrap\(optimizer\) first"):
        mpisign.DistributedOptimizer(optimizer)
    p.grad = torch.full((3,), 5.0)
    optimizer.step()
    assert (p.grad == 1).all()
    mpisign.unwrap(optimizer)
    p.grad = torch.full((3,), 5.0)
    optimizer.step()
    assert (p.grad == 5).all()
    with pytest.warns(UserWarning, match="starts anew"):
        mpisign.DistributedOptimizer(optimizer, compression="sign")
    mpisign.unwrap(optimizer)
    with pytest.warns(UserWarning, match="starts anew"):
        mpisign.DistributedOptimizer(optimizer, compression=EFSparsign(local_steps=2), skip=None)
    optimizer.step()
    with pytest.raises(RuntimeError, match="the round of local steps must be over, got 1 of 2"):
        mpisign.unwrap(optimizer)
