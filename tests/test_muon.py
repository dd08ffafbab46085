"""Newton-Schulz, the polar step's bits, and which parameters SignMuon takes for matrices."""

from __future__ import annotations

import numpy as np
import pytest
import reference as ref
import torch

import mpisign
import mpisign.fsdp
from mpisign import simulation
from mpisign.compressors import Detox, Lion, Muon, Signum
from mpisign.compressors.newton_schulz import exact_polar, orthogonalize
from mpisign.experiments.muon_and_adamw import MuonAndAdamW, PlainMuon

CUBIC = (1.5, -0.5, 0.0)


@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (3, 7), (7, 3), (64, 64), (127, 33), (5, 129)])
def test_newton_schulz_is_its_equation(shape):
    x = np.random.default_rng(shape).standard_normal(shape).astype(np.float32)
    x[0], x[:, -1] = 0.0, -0.0
    if min(shape) == 1:
        x = x + np.float32(0.5)
    for scale in (1.0, 3e37, 1e-30):
        for coefficients in (ref.muon.MUON, CUBIC):
            eps = 1e-7 if scale >= 1 else 1e-37
            given = x * np.float32(scale)
            u = orthogonalize(torch.from_numpy(given), 5, coefficients, eps).numpy()
            wanted = ref.muon.newton_schulz(given, 5, coefficients, eps)
            assert u.dtype == np.float32 and np.abs(u - wanted).max() < 1e-5
            assert not u[wanted == 0].any()
    u, _, v = np.linalg.svd(x.astype(np.float64), full_matrices=False)
    rank = np.linalg.matrix_rank(x)
    many = orthogonalize(torch.from_numpy(x), 60, CUBIC, 1e-7).numpy()
    assert np.allclose(many, u[:, :rank] @ v[:rank], atol=1e-4)
    assert not orthogonalize(torch.zeros(shape), 5, CUBIC, 1e-7).any()


def test_the_polar_step_has_the_same_bits_everywhere():
    rng, threads = np.random.default_rng(0), torch.get_num_threads()
    for shape in [(2, 2), (3, 7), (65, 64), (64, 200), (300, 111)]:
        for coefficients in (ref.muon.MUON, CUBIC):
            votes = rng.integers(-1, 2, shape).astype(np.float32)
            votes[-1] = -0.0
            wanted = ref.muon.exact_polar(votes, 5, coefficients)
            given = torch.from_numpy(votes)
            order = torch.from_numpy(rng.permutation(shape[1]))  # another order of all sums
            for x, back in ((given, None), (given.bfloat16(), None), (given[:, order], order)):
                torch.set_num_threads(1 if back is None else 3)
                found = exact_polar(x, 5, coefficients, 1e-7)
                torch.set_num_threads(threads)
                there = wanted if back is None else wanted[:, back.numpy()]
                assert np.array_equal(found.numpy(), there), shape
            near = orthogonalize(given, 5, coefficients, 1e-7)
            assert torch.allclose(torch.from_numpy(wanted).float(), near, atol=2e-5)
    assert not exact_polar(torch.zeros(3, 4), 5, CUBIC, 1e-7).any()


class Net(torch.nn.Module):
    def __init__(self, tied=False):
        super().__init__()
        self.tokens, self.conv = torch.nn.Embedding(12, 6), torch.nn.Conv2d(1, 4, 3)
        self.blocks = torch.nn.ModuleList([torch.nn.Linear(6, 6), torch.nn.Linear(6, 6)])
        self.head = torch.nn.Linear(6, 12)
        if tied:
            self.head.weight = self.tokens.weight


def test_which_parameters_are_matrices():
    """Through a whole exchange: those that are have Muon's momentum, and all replicas agree."""
    taken = {}

    def train(comm, compression):
        torch.manual_seed(0)
        net = Net()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        mpisign.DistributedOptimizer(
            optimizer, net.named_parameters(), comm=comm, compression=compression
        )
        buckets = optimizer.mpisign.exchange.buckets
        taken[compression] = {
            s.name for b in buckets for s in b.slots if "Muon(" in repr(b.compressor)
        }
        for step in range(3):
            optimizer.zero_grad()
            x = net.tokens(torch.tensor([[step, comm.rank + 3]]))
            for block in net.blocks:
                x = block(x).relu()
            (
                net.head(x).logsumexp(-1).sum() + net.conv(torch.ones(1, 1, 4, 4)).pow(2).sum()
            ).backward()
            optimizer.step()
        return [p.detach() for p in net.parameters()]

    for compression in (Muon(), Muon(others_for=("conv.*", "*.1.weight")), Muon(polar=True)):
        first, second = simulation.run(2, train, compression, timeout=20)
        assert all(map(torch.equal, first, second))
    usual, fewer, polar = taken.values()
    assert usual == polar == {"conv.weight", "blocks.0.weight", "blocks.1.weight"}
    assert fewer == {"blocks.0.weight"}


def test_of_an_output_layer_that_is_tied_and_of_detox():
    net = Net(tied=True)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)

    def wrap(comm):  # without names
        mpisign.DistributedOptimizer(optimizer, comm=comm, compression="muon")

    simulation.run(1, wrap, timeout=20)
    kinds = [type(b.compressor) for b in optimizer.mpisign.exchange.buckets]
    assert kinds.count(Lion) == 2 and kinds.count(Muon) == 1  # tied: it abstains
    inner = Detox(redundancy=3, inner=Muon(others="signum"))
    of = inner.of_parameter("bias", net.head.bias, lambda: False)
    assert of.inner == Signum() and inner.of_parameter("w", net.conv.weight, lambda: False) is inner
    with pytest.raises(ValueError, match="inner must be a compressor that votes"):
        Detox(inner=Muon(polar=True))


def test_what_has_no_whole_matrices_is_refused():
    with pytest.raises(ValueError, match="must be that of a whole matrix, got shape .7,."):
        Muon().compress(torch.ones(7), {})
    with pytest.raises(ValueError, match="mpisign.ddp takes the others, and muon's matrices whole"):
        mpisign.fsdp.MajorityVoteState(compression="muon")


def test_momentum_in_16_bits_and_of_warm_up():
    state, g = {}, torch.tensor([[1.0, -2.0], [float("inf"), 3.0]])
    half = Muon(momentum_dtype="bfloat16")
    half.warm_up(g, g, state)
    m = state["momentum"]
    assert m.dtype == torch.bfloat16 and m[1, 0] == 0
    assert torch.equal(
        half.compress_missing(g, state), orthogonalize(m.float(), 5, half.coefficients, 1e-7)
    )


def test_muon_on_averages_is_torchs():
    torch.manual_seed(0)
    ps = [[torch.nn.Parameter(torch.ones(s)) for s in ((8, 5), (4, 12))] for _ in range(2)]
    ours = PlainMuon(ps[0], lr=0.1)
    torchs = torch.optim.Muon(ps[1], lr=0.1, weight_decay=0.1)
    for _ in range(4):
        for a, b in zip(*ps, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        ours.step()
        torchs.step()
    for a, b in zip(*ps, strict=True):
        assert torch.allclose(a, b, atol=0.02) and not torch.allclose(a, torch.ones(()), atol=0.1)
    net = Net()
    both = MuonAndAdamW(list(net.named_parameters()), lr=0.1)
    (muon, _), (adamw, _) = both._both
    shapes = [tuple(p.shape) for p in muon.param_groups[0]["params"]]
    assert shapes == [(4, 1, 3, 3), (6, 6), (6, 6)]
    assert len(adamw.param_groups[0]["params"]) == len(list(net.parameters())) - 3
    net.conv(torch.ones(1, 1, 4, 4)).sum().backward()
    before = net.conv.weight.detach().clone()
    both.step()
    assert not torch.equal(before, net.conv.weight)
