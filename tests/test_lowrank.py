"""Layers as two thin ones: the same function at full rank, the equations of NumPy below it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from reference import lowrank as reference
from torch import nn

import mpisign
from mpisign.lowrank import LowRankAttention, LowRankConv2d, LowRankLinear, LowRankLSTM, factorize

EVERY = {"first": 0, "last": 0, "min_size": 1}


def seeded(seed, make):
    torch.manual_seed(seed)
    return make()


def close(got, wanted, tolerance=2e-5):
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)


class Encoder(nn.Module):
    """torch's transformer layers, which read the weights of their attention and linear layers."""

    def __init__(self, **options):
        super().__init__()
        layer = nn.TransformerEncoderLayer(12, 4, 20, dropout=0.0, **options)
        nested = not options.get("norm_first", False)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested)

    def forward(self, x):
        n = x.shape[0 if self.layers.layers[0].self_attn.batch_first else 1]
        length = x.numel() // n // 12
        padding = torch.arange(length) >= torch.arange(length, length - n, -1)[:, None]
        return self.layers(x, src_key_padding_mask=padding)


class Attention(nn.Module):
    """What a MultiheadAttention may be asked for."""

    def __init__(self, causal=False, weights=False, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(12, 3, **options)
        self.causal, self.weights = causal, weights

    def forward(self, x):
        key, value = x, x
        if self.attention.kdim != 12:
            key, value = x[..., :7], x[..., :5]
        length = x.shape[1 if self.attention.batch_first else 0]
        mask = torch.ones(length, length, dtype=torch.bool).triu(1) if self.causal else None
        out, weights = self.attention(
            x, key, value, attn_mask=mask, is_causal=self.causal, need_weights=self.weights
        )
        return out if weights is None else torch.cat([out.flatten(), weights.flatten()])


class Recurrent(nn.Module):
    def __init__(self, packed=False, **options):
        super().__init__()
        self.lstm, self.packed = nn.LSTM(12, 10, **options), packed

    def forward(self, x):
        if self.packed:
            x = nn.utils.rnn.pack_padded_sequence(x, [5, 3, 2], enforce_sorted=True)
        out, (h, c) = self.lstm(x)
        out = out.data if self.packed else out
        return torch.cat([out.flatten(), h.flatten(), c.flatten()])


MODELS = {
    "linear": (lambda: nn.Sequential(nn.Linear(12, 7), nn.Linear(7, 9, bias=False)), (4, 12)),
    "conv": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, (3, 2), stride=2, padding=(1, 0), dilation=2),
            nn.Conv2d(8, 5, 3, padding="same", padding_mode="circular", bias=False),
        ),
        (2, 3, 13, 11),
    ),
    "lstm": (lambda: Recurrent(num_layers=2, bidirectional=True, batch_first=True), (3, 5, 12)),
    "lstm, projected": (lambda: Recurrent(proj_size=4, bias=False, packed=True), (5, 3, 12)),
    "attention": (lambda: Attention(batch_first=True), (3, 5, 12)),
    "attention, causal": (lambda: Attention(causal=True), (5, 3, 12)),
    "attention, weights": (lambda: Attention(weights=True, causal=True), (5, 3, 12)),
    "attention, unbatched": (lambda: Attention(bias=False), (5, 12)),
    "attention, bias_kv": (lambda: Attention(add_bias_kv=True, add_zero_attn=True), (5, 3, 12)),
    "attention, widths": (lambda: Attention(kdim=7, vdim=5, batch_first=True), (3, 5, 12)),
    "encoder": (lambda: Encoder(batch_first=True, activation="gelu"), (3, 5, 12)),
    "encoder, time first": (lambda: Encoder(norm_first=True), (5, 3, 12)),
}


@pytest.mark.filterwarnings("ignore:.*nested tensor", "ignore:.*prototype stage")
@pytest.mark.parametrize("name", MODELS)
def test_at_full_rank_the_model_is_the_same_and_below_that_of_its_products(name):
    make, shape = MODELS[name]
    full, x = seeded(0, make), torch.randn(shape)
    for p in full.parameters():
        if p.dim() == 1:
            nn.init.normal_(p)
    wanted = full(x)
    with torch.no_grad():
        wanted_eval = copy.deepcopy(full).eval()(x)
    thin = copy.deepcopy(full)
    report = factorize(thin, rank_ratio=1.0, **EVERY)
    assert len(report.thin) == sum(p.dim() in (2, 4) for p in full.parameters())
    close(thin(x), wanted)
    with torch.no_grad():
        close(copy.deepcopy(thin).eval()(x), wanted_eval)  # torch's fused path, for the encoder

    factorize(full, rank_ratio=0.3, **EVERY)
    back = seeded(1, make)  # full weights again: products of the factors
    for name, p in back.named_parameters():
        p.data.copy_(operator(full, name).detach())
    close(full(x), back(x))
    with torch.no_grad():
        close(full.eval()(x), back.eval()(x))
    for model in (full.train(), back.train()):
        model(x).square().sum().backward()
    for module in full.modules():
        if isinstance(module, LowRankLinear):
            name = next(n for n, m in full.named_modules() if m is module)
            grad = gradient(back, name)
            close(module.u.grad, grad @ module.v.T, 1e-3)
            close(module.v.grad, module.u.T @ grad, 1e-3)


def operator(model, name):
    """A weight by the name that it had when it was full."""
    owner, _, own = name.rpartition(".")
    return getattr(model.get_submodule(owner), own)


def gradient(model, name):
    """Of a full weight: of q, k and v the part of in_proj_weight."""
    owner, _, own = name.rpartition(".")
    if own not in ("q", "k", "v"):
        return model.get_submodule(name).weight.grad
    attention = model.get_submodule(owner)
    if attention.in_proj_weight is None:
        return getattr(attention, f"{own}_proj_weight").grad
    return attention.in_proj_weight.grad.chunk(3)["qkv".index(own)]


def numpy(x):
    return x.detach().double().numpy()


def test_factors_and_layers_are_those_of_the_equations():
    linear, conv, lstm = nn.Linear(13, 11), nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.LSTM(9, 7)
    attention = nn.MultiheadAttention(10, 2)
    model = nn.ModuleList([linear, conv, lstm, attention])
    weights = [linear.weight, conv.weight, attention.in_proj_weight[10:20], lstm.weight_ih_l0[:7]]
    weights = [numpy(w) for w in weights]
    bias_h = numpy(lstm.bias_ih_l0 + lstm.bias_hh_l0)
    factorize(model, rank_ratio=0.5, **EVERY)
    linear, conv, lstm, attention = model
    kinds = (LowRankLinear, LowRankConv2d, LowRankLSTM, LowRankAttention)
    assert tuple(map(type, model)) == kinds
    found = [(linear.u, linear.v), (conv.u.flatten(1), conv.v.flatten(1))]
    found += [(attention.k.u, attention.k.v), (lstm.u_weight_ih_l0[0], lstm.v_weight_ih_l0[0])]
    for w, (u, v), rank in zip(weights, found, (5, 4, 5, 3), strict=True):
        u, v = numpy(u), numpy(v)
        assert u.shape[1] == len(v) == rank
        wanted_u, wanted_v = reference.factors(w, rank)
        np.testing.assert_allclose(u @ v, wanted_u @ wanted_v, atol=1e-5)  # signs are free
        np.testing.assert_allclose(np.abs(u), np.abs(wanted_u), atol=1e-4)
        np.testing.assert_allclose(u.T @ u, v @ v.T, atol=1e-5)  # S, on both sides
    x = torch.randn(3, 7, 6)
    u, v = numpy(conv.u.flatten(1)), numpy(conv.v.flatten(1))
    wanted = reference.thin_conv(numpy(x), u, v, 3, 2, 1) + numpy(conv.bias)[:, None, None]
    np.testing.assert_allclose(numpy(conv(x)), wanted, atol=1e-5)
    xs = torch.randn(4, 9)
    of_x, of_h = (
        [
            (numpy(u), numpy(v))
            for u, v in zip(
                getattr(lstm, f"u_weight_{of}_l0"),
                getattr(lstm, f"v_weight_{of}_l0"),
                strict=True,
            )
        ]
        for of in ("ih", "hh")
    )
    np.testing.assert_allclose(
        numpy(lstm(xs)[0]), reference.lstm(numpy(xs), of_x, of_h, bias_h), atol=1e-5
    )


class Tied(nn.Module):
    """Everything that stays full, and one layer that does not."""

    def __init__(self):
        super().__init__()
        self.characters = nn.Embedding(20, 16)
        self.block = nn.ModuleDict(
            {
                "fc": nn.Linear(16, 16),
                "frozen": nn.Linear(16, 16).requires_grad_(False),
                "normed": nn.utils.parametrizations.weight_norm(nn.Linear(16, 16)),
                "grouped": nn.Conv2d(16, 16, 3, groups=2),
                "hooked": nn.Linear(16, 16),
                "tiny": nn.Linear(2, 3),
                "own": type("Own", (nn.Linear,), {})(16, 16),
                "norm": nn.BatchNorm1d(16),
            }
        )
        self.block["again"] = self.block["shared"] = nn.Linear(16, 16)
        self.block["hooked"].register_forward_hook(lambda *_: None)
        self.tied = nn.Linear(16, 20)
        self.tied.weight = self.characters.weight
        self.out = nn.Linear(16, 16)


def test_what_stays_full_and_why():
    model = Tied()
    before = dict(model.named_parameters())
    report = factorize(model, min_size=20)
    reasons = {w.name: w.reason for w in report.weights}
    assert reasons == {
        "characters": "first",
        "block.fc.weight": "",
        "block.frozen": "frozen",
        "block.normed": "of class ParametrizedLinear",
        "block.grouped": "2 groups",
        "block.hooked": "it has hooks",
        "block.tiny": "below min_size=20",
        "block.own": "of class Own",
        "block.again": "tied",
        "tied": "tied",
        "out": "last",
    }
    after = dict(model.named_parameters())
    assert all(after[name] is p for name, p in before.items() if name != "block.fc.weight")
    assert report.before - report.after == 16 * 16 - 2 * 4 * 16
    assert "block.fc.weight  (16, 16)     4         256  128" in str(report)
    assert "factorized already" in str(factorize(model, min_size=20))
    for keep in ("block", ["block.fc"], "*.fc", lambda name, _: name == "block.fc"):
        assert not factorize(Tied(), keep=keep, min_size=20).thin
    assert not factorize(nn.Linear(9, 9), **EVERY).thin  # nothing holds the model itself
    assert not factorize(Tied(), first=2, min_size=20).thin


def test_arguments():
    model = nn.Sequential(nn.Linear(4, 4))
    sgd = torch.optim.SGD(model.parameters(), lr=1)
    adam = mpisign.optim.OneBitAdam(model.parameters(), lr=1)
    for error, text, arguments in (
        (TypeError, "model must be a Module, got str", {"model": "net"}),
        (ValueError, r"rank_ratio must be in \(0, 1\], got 0", {"rank_ratio": 0}),
        (TypeError, "rank_ratio must be a number, got str", {"rank_ratio": "1"}),
        (ValueError, "first must be a number from 0, got -1", {"first": -1}),
        (ValueError, "states must be 'projected' or 'new', got 'zero'", {"states": "zero"}),
        (ValueError, "keep names 'fc', which is no module", {"keep": ["fc"]}),
        (TypeError, "optimizer must be a torch.optim.Optimizer, got int", {"optimizer": 3}),
        (ValueError, "must not be OneBitAdam", {"optimizer": adam}),
        (ValueError, "got DataParallel: give model.module", {"model": nn.DataParallel(model)}),
    ):
        with pytest.raises(error, match=f"factorize: .*{text}"):
            factorize(**{"model": model, "optimizer": sgd, **arguments})
