"""Compressors: what they pack of many gradients in one call, and what they remember."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import reference as ref
import samples
import torch

from mpisign.compressors import Compressor, PackContext, Sign, Signum
from mpisign.exchange.buckets import BucketLayout
from mpisign.planes import pack

KEYS = {"seed": 5, "step": 6, "rank": 7}
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def gradients(seed=0):
    shapes = [(3, 7), (65,), (), (2, 3, 5)]
    made = [samples.awkward(int(np.prod(s)), seed).reshape(s) for s in shapes]
    grads = [torch.from_numpy(g).to(d) for g, d in zip(made, DTYPES, strict=True)]
    return [*grads, torch.arange(12.0).reshape(3, 4).t() - 5]


def packed(compressor, grads, states):
    bucket = BucketLayout([g.numel() for g in grads])
    two = "abstain" in (compressor.zeros, compressor.nan)
    out = np.zeros((2, bucket.nbytes) if two else bucket.nbytes, dtype=np.uint8)
    nans = compressor.pack(grads, states, out, bucket.offsets, PackContext(**KEYS))
    return [out[..., bucket.span(i)] for i in range(len(grads))], nans, bucket


@dataclass(frozen=True)
class Inverted(Compressor):
    """A compressor that knows ``compress`` alone."""

    def compress(self, grad, state):
        return -grad


@pytest.mark.parametrize("zeros", ["positive", "random", "abstain"])
@pytest.mark.parametrize("kind, factor", [(Sign, 1), (Inverted, -1)])
def test_a_bucket_is_packed_as_its_members_are(kind, factor, zeros):
    grads = gradients()
    parts, nans, bucket = packed(kind(zeros=zeros), grads, [{} for _ in grads])
    assert nans == 0
    for g, part, offset in zip(grads, parts, bucket.offsets, strict=True):
        alone = pack(factor * g, zeros=zeros, offset=8 * offset, **KEYS)
        assert np.array_equal(part, alone.numpy())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_signum_packs_its_momentum_and_keeps_it_in_its_own_dtype(dtype):
    compressor = Signum(momentum=0.8, momentum_dtype=dtype, zeros="positive")
    states = [{} for _ in gradients()]
    like = {"float32": np.float32, "bfloat16": pytest.importorskip("ml_dtypes").bfloat16}[dtype]
    expected = [np.zeros(g.numel(), dtype=like) for g in gradients()]
    for step in range(3):
        grads = gradients(step)
        with np.errstate(invalid="ignore"):
            both = [
                ref.signum(g.float().numpy(), m, 0.8) for g, m in zip(grads, expected, strict=True)
            ]
        expected = [m for _, m in both]
        parts, nans, _ = packed(compressor, grads, states)
        assert nans == sum(np.isnan(v).sum() for v, _ in both)
        for g, part, state, (v, m) in zip(grads, parts, states, both, strict=True):
            sign, votes = ref.pack(v)
            assert np.array_equal(part, sign & votes)
            assert state["momentum"].dtype == getattr(torch, dtype)
            assert state["momentum"].shape == g.shape
            assert samples.same(state["momentum"].float().numpy().reshape(-1), m.astype(np.float32))


def test_what_is_voted_on_is_what_is_packed():
    for dtype in ("float32", "bfloat16"):
        compressor = Signum(momentum_dtype=dtype, nan="abstain")
        one, other = [{}], [{}]
        for seed in range(3):
            g = torch.from_numpy(np.random.default_rng(seed).standard_normal(99)).float()
            g[seed] = float("nan")
            (part,), nans, _ = packed(compressor, [g], one)
            alone = pack(compressor.compress(g, other[0]), nan="abstain", **KEYS)
            assert nans == 1 and np.array_equal(part, alone.numpy())
            assert torch.equal(one[0]["momentum"], other[0]["momentum"])


def test_a_momentum_saved_in_another_dtype_goes_on():
    state = {"momentum": torch.linspace(-1, 1, 9, dtype=torch.float64)}
    packed(Signum(momentum=0.5), [torch.zeros(9)], [state])
    assert torch.equal(state["momentum"], torch.linspace(-0.5, 0.5, 9))


def test_momentum_dtype_is_checked():
    with pytest.raises(ValueError, match="momentum_dtype must be .* got 'float16'"):
        Signum(momentum_dtype="float16")
