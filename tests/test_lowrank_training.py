"""Training goes on in thin layers: optimizer state, votes, ranks that agree."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from launchers import RANKS, on_ranks
from reference import lowrank as reference
from torch import nn

import mpisign
from mpisign import simulation
from mpisign.compressors import EFSign, Signum
from mpisign.errors import CollectiveError, DisagreementError
from mpisign.lowrank import factorize

EXACT = Signum(momentum=0.5, zeros="abstain", ties="zero")


def seeded(seed, make):
    torch.manual_seed(seed)
    return make()


def numpy(x):
    return x.detach().double().numpy()


class Net(nn.Module):
    """Odd sizes; one thin Linear, one thin kernel, one thin attention between full layers."""

    def __init__(self):
        super().__init__()
        self.enter = nn.Conv2d(1, 3, 3)
        self.conv = nn.Conv2d(3, 7, 3)
        self.fc = nn.Linear(7, 10)
        self.attention = nn.MultiheadAttention(10, 2, batch_first=True)
        self.leave = nn.Linear(10, 3)

    def forward(self, x):
        x = self.conv(self.enter(x).tanh()).tanh().flatten(2).transpose(1, 2)
        x = self.fc(x).tanh()
        return self.leave(x + self.attention(x, x, x, need_weights=False)[0]).square().mean()


def train(net, optimizer, rank, steps):
    for step in steps:
        optimizer.zero_grad()
        x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(100 * step + rank))
        net(x).backward()
        optimizer.step()


def weights_of(net):
    """The matrices of the full weights, their kept sums, and the factors' places in the thin net.

    {name of the factors' owner: (name of the weight, rows of it)}
    """
    three = {f"attention.{c}": ("attention.in_proj_weight", i) for i, c in enumerate("qkv")}
    return {"conv": ("conv.weight", 0), "fc": ("fc.weight", 0), **three}


@pytest.mark.parametrize("size, overlap", [(1, False), (2, True), (3, False), (4, True)])
def test_in_mid_run_votes_go_on(size, overlap):
    """Momenta by the chain rule, votes on them, replicas equal, and what is saved goes on alike."""

    def wrap(net, comm):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01, weight_decay=0.1)
        return mpisign.DistributedOptimizer(
            optimizer, net.named_parameters(), comm=comm, compression=EXACT, overlap=overlap,
            bucket_size=100, skip=None, seed=3,
        )  # fmt: skip

    def run(comm):
        net = Net()
        net.load_state_dict(start)
        optimizer = wrap(net, comm)
        train(net, optimizer, comm.rank, range(3))
        momenta = {k: v["momentum"].clone() for k, v in states(optimizer).items()}
        report = factorize(net, optimizer=optimizer, min_size=1)
        assert {id(p) for p in optimizer.param_groups[0]["params"]} == set(
            map(id, net.parameters())
        )
        for owner, (name, part) in weights_of(net).items():
            m = net.get_submodule(owner)
            u, v = numpy(m.u.flatten(1)), numpy(m.v.flatten(1))
            s = numpy(momenta[name].reshape(3 if "in_proj" in name else 1, len(u), -1)[part])
            for letter, wanted in zip("uv", reference.of_sum(s, u, v), strict=True):
                got = numpy(states(optimizer)[f"{owner}.{letter}"]["momentum"].flatten(1))
                np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-6)
        for name in ("enter.weight", "leave.bias", "conv.bias"):
            assert torch.equal(states(optimizer)[name]["momentum"], momenta[name])
        before = {n: p.detach().clone() for n, p in net.named_parameters()}
        train(net, optimizer, comm.rank, [3])
        assert optimizer.state_dict()["mpisign"]["steps"] == 4
        moments = {n: s["momentum"].clone() for n, s in states(optimizer).items()}
        after = {n: p.detach().clone() for n, p in net.named_parameters()}
        saved = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(net.state_dict())
        train(net, optimizer, comm.rank, range(4, 6))

        again = Net()  # a new job: whatever the weights, they become as thin
        again.load_state_dict(start)
        factorize(again, comm=comm, min_size=1)
        again.load_state_dict(saved[1])
        other = wrap(again, comm)
        other.load_state_dict(saved[0])
        train(again, other, comm.rank, range(4, 6))
        assert all(map(torch.equal, net.parameters(), again.parameters()))
        return before, moments, after, [p.detach() for p in net.parameters()], report

    start = seeded(0, Net).state_dict()
    ranks = simulation.run(size, run, timeout=60)
    for name, p in ranks[0][2].items():
        before = ranks[0][0][name]
        vote = sum(rank[1][name].sign() for rank in ranks).sign()
        assert torch.equal(p, before.clone().add_(vote + 0.1 * before, alpha=-0.01)), name
    for rank in ranks[1:]:
        assert all(map(torch.equal, rank[3], ranks[0][3]))
    assert str(ranks[-1][4]) == str(ranks[0][4])


def states(optimizer):
    return optimizer.state_dict()["mpisign"]["state"]


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
        lambda p: torch.optim.Rprop(p, lr=0.01),
    ],
)
def test_what_an_optimizer_keeps(make):
    """Sums by the chain rule, squares by squares; of what has no rule, nothing; then it trains."""
    net = seeded(0, Net)
    optimizer = make(list(net.named_parameters()))
    mpisign.DistributedOptimizer(optimizer, compression="none")
    train(net, optimizer, 0, range(3))
    old = {name: dict(optimizer.state[p]) for name, p in net.named_parameters()}
    report = factorize(net, optimizer=optimizer, min_size=1)
    names = optimizer.param_groups[0]["param_names"]
    assert len(names) == len(optimizer.param_groups[0]["params"]) == len([*net.parameters()])
    assert (len(report.new_states) == 4) == isinstance(optimizer, torch.optim.Rprop)
    for owner, (name, part) in weights_of(net).items():
        m = net.get_submodule(owner)
        u, v = numpy(m.u.flatten(1)), numpy(m.v.flatten(1))
        for factor, letter in ((m.u, 0), (m.v, 1)):
            kept = optimizer.state.get(factor, {})
            assert set(kept) == (set() if report.new_states else set(old[name]))
            for key in set(kept) - {"step"}:
                s = old[name][key].reshape(3 if "in_proj" in name else 1, len(u), -1)[part]
                of = reference.of_squares if "sq" in key else reference.of_sum
                wanted = of(numpy(s), u, v)[letter]
                np.testing.assert_allclose(
                    numpy(kept[key].flatten(1)), wanted, rtol=1e-4, atol=1e-9
                )
            assert kept.get("step", 3) == 3
    before = [p.detach().clone() for p in net.parameters()]
    train(net, optimizer, 0, range(3, 5))
    assert not any(map(torch.equal, before, net.parameters()))


def test_new_states_and_an_optimizer_that_is_unwrapped():
    net = seeded(0, Net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    mpisign.DistributedOptimizer(optimizer, compression=EFSign(), skip=None)
    train(net, optimizer, 0, range(2))
    residual = numpy(states(optimizer)["4"]["residual"])
    mpisign.unwrap(optimizer)
    report = factorize(net, optimizer=optimizer, min_size=1, keep="conv", states="new")
    assert report.new_states == (
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "fc.weight",
    )
    assert not hasattr(optimizer, "mpisign")
    other = seeded(0, Net)
    stepping = torch.optim.SGD(other.parameters(), lr=0.1)
    mpisign.DistributedOptimizer(stepping, compression=EFSign(), skip=None)
    train(other, stepping, 0, range(2))
    mpisign.unwrap(stepping)
    assert not factorize(other, optimizer=stepping, min_size=1, keep="conv").new_states
    for model, o in ((net, optimizer), (other, stepping)):
        mpisign.DistributedOptimizer(o, model.named_parameters(), compression=EFSign(), skip=None)
    assert "fc.u" not in states(optimizer) or not states(optimizer)["fc.u"]
    u, v = numpy(other.fc.u), numpy(other.fc.v)
    wanted = reference.of_sum(residual, u, v)[0]
    np.testing.assert_allclose(
        numpy(states(stepping)["fc.u"]["residual"]), wanted, rtol=1e-4, atol=1e-7
    )


def test_the_same_error_on_all_ranks_and_nothing_changed(monkeypatch):
    """NaN on one rank, replicas that differ, other arguments, and rank 0 that cannot."""

    def run(comm, what):
        net = Net()
        net.load_state_dict(start)
        ratio, last = 0.25, comm.rank == comm.size - 1
        if what == "ratio" and last:
            ratio = 0.5
        if what == "settings" and last:
            ratio = 0.2501
        if what in ("nan", "inf") and last:
            net.fc.weight.data[3, 2] = float(what)
        if what == "replicas" and last:
            net.leave.bias.data[0] += 1
        kind = DisagreementError if what in ("ratio", "settings") else CollectiveError
        before = [*net.parameters()]
        with pytest.raises(kind) as error:
            factorize(net, ratio, comm=comm, min_size=1)
        assert all(a is b for a, b in zip(before, net.parameters(), strict=True))
        return str(error.value)

    start = seeded(0, Net).state_dict()
    wanted = {
        "nan": "rank 2: parameter 'fc.weight' holds NaN or infinity",
        "inf": "rank 2: parameter 'fc.weight' holds NaN or infinity",
        "ratio": "names, shapes or dtypes of the parameters (ranks 0-1 against rank 2)",
        "settings": "arguments, or what the optimizers keep (ranks 0-1 against rank 2)",
        "replicas": "replicas differ in the parameters",
        "svd": "rank 0: no convergence",
    }
    for what, text in wanted.items():
        if what == "svd":
            monkeypatch.setattr(mpisign.lowrank.matrix.Matrix, "decompose", fails)
        errors = simulation.run(3, run, what, timeout=20)
        assert len(set(errors)) == 1, errors
        assert errors[0].startswith("factorize: ") and text in errors[0], errors[0]


def test_an_optimizer_that_was_not_given_stops_on_all_ranks():
    """It would step on parameters that the model has no more; a new one goes on."""

    def run(comm):
        net = seeded(3, Net)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        mpisign.DistributedOptimizer(optimizer, net.named_parameters(), comm=comm, skip=None)
        train(net, optimizer, comm.rank, range(1))
        factorize(net, comm=comm, min_size=1)
        with pytest.raises(CollectiveError) as error:
            train(net, optimizer, comm.rank, range(1, 2))
        new = torch.optim.SGD(net.parameters(), lr=0.1)
        mpisign.DistributedOptimizer(new, net.named_parameters(), comm=comm, skip=None)
        train(net, new, comm.rank, range(1, 3))
        return str(error.value), [p.detach() for p in net.parameters()]

    (error, ours), (other, theirs) = simulation.run(2, run)
    assert (
        error == other and "ranks 0-1: factorize has put another parameter in the place of" in error
    )
    assert all(map(torch.equal, ours, theirs))


def fails(matrix):
    raise RuntimeError("no convergence")


def test_the_recipe_of_studies():
    """Full, then thin, on two ranks that end at the same bits; a method may have fewer steps."""
    pytest.importorskip("sklearn")
    from mpisign.experiments import file, plan, run

    text = file.source("pufferfish").replace("steps = 200", "steps = 8")
    text = text.replace("ranks = 4", "ranks = 2").replace("evaluations = 5", "evaluations = 2")
    groups = plan.groups(file.parse(text, "small"))
    for number, label, steps, parameters, bits in (
        (1, "warm-up only", 50, 150794, 1.0),
        (3, "warm-up then low rank", 8, 85258, (2 + 6 * 85258 / 150794) / 8),
        (7, "low rank from the start", 8, 85258, 32 * 85258 / 150794),
    ):
        assert groups[number].method.label == label
        (cell,) = groups[number].tuning[groups[number].method.lr[0]]
        assert cell.steps == steps
        if steps == 8:
            result = run.simulated(cell)
            assert result["parameters_at_the_end"] == parameters
            assert result["bits"] == round(bits, 4)


def test_ranks_with_other_threads_and_the_front_ends(tmp_path):
    output = on_ranks(3, RANKS / "lowrank_ranks.py", tmp_path, timeout=120)
    assert output.count("equal") == 3, output
