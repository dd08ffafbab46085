"""Momentum and sparsign, packed in one pass: bit for bit against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import reference as ref
import samples
import torch
from fused_arrays import (
    BF16,
    DTYPES,
    KEYS,
    ZEROS,
    any_isa,
    at_odd_place,
    awkward,
    isa,
    isa_restored,
    untouched,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mpisign import _kernels, planes
from mpisign.backend import threads
from mpisign.planes import pack_lion, pack_signum, pack_sparsign

assert isa and isa_restored  # fixtures
RULES = [(pack_signum, ref.signum, {"beta": 0.8}), (pack_lion, ref.lion, {"beta2": 0.97})]
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")


def expected_planes(voted, zeros, nan, offset=0, **keys):
    sign, votes = ref.pack(voted, zeros, offset=offset, **keys)
    two = zeros == "abstain" or nan == "abstain"
    return np.stack([sign & votes, votes]) if two else sign & votes


@pytest.mark.parametrize("function, reference, rule", RULES)
@pytest.mark.parametrize("momentum", [np.float32, BF16])
@pytest.mark.parametrize("dtype", DTYPES)
def test_momentum_matches_the_reference(isa, dtype, momentum, function, reference, rule):
    for length in samples.LENGTHS:
        g, old = awkward(length, 1, dtype), samples.awkward(length, 2).astype(momentum)
        g = at_odd_place(g, length)
        voted, new = reference(g, old, **rule)
        for zeros, nan in (("positive", "raise"), ("random", "abstain"), ("abstain", "raise")):
            m = at_odd_place(old, length + 1)
            result, n_zeros, nans = function(
                g, m, zeros=zeros, nan=nan, offset=8 * 19, **KEYS, **rule
            )
            assert np.array_equal(result, expected_planes(voted, zeros, nan, 8 * 19, **KEYS))
            assert samples.same(m, new)
            assert (n_zeros, nans) == ((voted == 0).sum(), np.isnan(voted).sum())


@pytest.mark.parametrize("dtype", DTYPES)
def test_sparsign_matches_the_reference(isa, dtype):
    for length in samples.LENGTHS:
        g = at_odd_place(awkward(length, 3, dtype), length)
        for budget in (1e-3, 0.4, 3e4):
            result, n_zeros, nans = pack_sparsign(g, budget=budget, offset=8 * 5, **KEYS)
            assert np.array_equal(result, ref.sparsign(g, budget, offset=8 * 5, **KEYS))
            v = ref.widened(g)
            assert (n_zeros, nans) == ((v == 0).sum(), np.isnan(v).sum())


def test_sparsign_draws_more_bits_where_16_do_not_decide(isa):
    g = np.repeat(np.float32(0.3), 1 << 19) / np.arange(1, (1 << 19) + 1, dtype=np.float32)
    halves = ref.random_halves(1, 2, 3, 0, g.size)
    t = np.float32(65536) * g
    assert ((t > halves) & (t < halves + 1.0)).sum() > 5
    result, _, _ = pack_sparsign(g, budget=1.0, seed=1, step=2, rank=3)
    assert np.array_equal(result, ref.sparsign(g, 1.0, 1, 2, 3))


def test_sparsign_is_as_frequent_as_it_says():
    # Specification 3: u = (10, then nine of -1), budget 0.1.
    u = np.tile(np.array([10.0] + [-1.0] * 9, dtype=np.float32), 20_000)
    result, _, _ = pack_sparsign(u, budget=0.1)
    votes = np.unpackbits(result[1], bitorder="little")[: u.size].reshape(-1, 10)
    assert votes[:, 0].all()
    assert votes[:, 1:].mean() == pytest.approx(0.1, abs=0.003)


@pytest.mark.parametrize("function", [pack_signum, pack_lion, pack_sparsign])
def test_lists_lie_where_offsets_say(isa, function):
    lengths = (0, 1, 70, 9, 64, 4097, 8)
    grads = [awkward(n, 7, DTYPES[i % 4]) for i, n in enumerate(lengths)]
    nbytes = [planes.plane_bytes(n) for n in lengths]
    starts = (np.cumsum([0, *nbytes[:-1]]) + 2 * np.arange(len(lengths))).tolist()
    spans = [slice(s, s + b) for s, b in zip(starts, nbytes, strict=True)]
    out = np.full((2, starts[-1] + nbytes[-1] + 3), 0xAA, dtype=np.uint8)
    rule = {"budget": 0.3} if function is pack_sparsign else {"zeros": "abstain"}
    old = [samples.awkward(n, 8) for n in lengths]

    def call(i=None, **more):
        if function is pack_sparsign:
            return function(grads if i is None else grads[i], **rule, **KEYS, **more)
        return function(
            grads if i is None else grads[i],
            kept if i is None else kept[i],
            **rule,
            **KEYS,
            **more,
        )

    kept = [m.copy() for m in old]
    both, zeros, nans = call(offsets=starts, out=out)
    assert both is out and untouched(out, spans)
    together, kept = kept, [m.copy() for m in old]
    close, *_ = call()
    assert close.shape == (2, sum(nbytes))
    kept = [m.copy() for m in old]
    counted = np.zeros(2, dtype=int)
    for i, span in enumerate(spans):
        alone, *counts = call(i, offset=8 * span.start)
        assert np.array_equal(out[:, span], alone)
        assert samples.same(kept[i], together[i])
        counted += counts
    assert (zeros, nans) == tuple(counted)


def test_results_do_not_depend_on_threads(isa, monkeypatch):
    g, old = awkward(600_001, 9), samples.awkward(600_001, 10)
    results = []
    for count in (1, 2, 3):
        monkeypatch.setattr(threads, "count", lambda count=count: count)
        m = old.copy()
        signed = pack_signum([g, g[:7]], [m, m[:7].copy()], **KEYS)
        ternary = pack_sparsign(g, budget=0.2, **KEYS)
        results.append([m, signed[0], ternary[0], np.array(signed[1:] + ternary[1:])])
    for other in results[1:]:
        assert all(map(samples.same, results[0], other))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("momentum", [torch.float32, torch.bfloat16])
def test_torch_is_packed_as_numpy_is(dtype, momentum):
    g = torch.from_numpy(awkward(4097, 11)).to(dtype).reshape(17, 241).t()
    old = torch.from_numpy(samples.awkward(4097, 12)).to(momentum).reshape(241, 17)
    m = old.clone()
    result, _, _ = pack_signum(g, m, zeros="abstain")
    values = old.float().numpy().astype(np.float32 if momentum == torch.float32 else BF16)
    voted, new = ref.signum(g.double().numpy().astype(DTYPES[0]), values)
    assert isinstance(result, torch.Tensor)
    assert np.array_equal(result.numpy(), expected_planes(voted, "abstain", "raise"))
    assert samples.same(m.float().numpy().reshape(-1), new.astype(np.float32))
    result, _, _ = pack_sparsign(g, budget=0.5)
    assert np.array_equal(result.numpy(), ref.sparsign(g.float().numpy(), 0.5))


floats = st.floats(width=32)
vectors = hnp.arrays(np.float32, st.integers(0, 200), elements=floats)


@given(any_isa, vectors, st.data(), st.sampled_from(ZEROS), st.floats(0, 1, width=32))
@settings(max_examples=150, deadline=None)
def test_any_floats(name, g, data, zeros, beta):
    _kernels.use_isa(name)
    old = data.draw(hnp.arrays(np.float32, g.size, elements=st.floats(width=32, allow_nan=False)))
    for function, reference, _ in RULES:
        rule = "beta" if function is pack_signum else "beta1"
        for momentum in (np.float32, BF16):
            m = old.astype(momentum)
            voted, new = reference(g, m, **{rule: beta})
            result, _, _ = function(g, m, zeros=zeros, **{rule: beta}, **KEYS)
            assert np.array_equal(result, expected_planes(voted, zeros, "raise", **KEYS))
            assert samples.same(m, new)
    budget = data.draw(st.floats(2.0**-149, 2.0**127, width=32))
    result, _, _ = pack_sparsign(g, budget=budget, **KEYS)
    assert np.array_equal(result, ref.sparsign(g, budget, **KEYS))


def f32(n=9):
    return np.ones(n, dtype=np.float32)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: pack_signum(f32(), f32(8)), ValueError, "momenta must have 9 coordinates.* got 8"),
        (lambda: pack_signum(f32(), f32().astype(np.float16)), TypeError, "float32 or bfloat16"),
        (lambda: pack_signum(f32(), f32(18)[::2]), ValueError, "momenta must be C-contiguous"),
        (lambda: pack_signum([f32()], [f32()] * 2), ValueError, "one for each of 1 gradients"),
        (lambda: pack_signum([], []), ValueError, "grads must hold at least one array"),
        (lambda: pack_signum([f32(), 3], [f32(), f32()]), TypeError, r"grads\[1\] must be .* int"),
        (lambda: pack_signum(f32(), f32(), beta=1.5), ValueError, r"beta must be in \[0, 1\]"),
        (lambda: pack_lion(f32(), f32(), beta2=-1), ValueError, "pack_lion: beta2 must be in"),
        (lambda: pack_signum(f32(), f32(), zeros="up"), ValueError, "zeros must be one of"),
        (lambda: pack_signum(f32(), f32(), offset=4), ValueError, "offset must be a multiple of 8"),
        (lambda: pack_signum(f32(), f32(), rank=-1), ValueError, "rank must be in"),
        (lambda: pack_signum(f32(), f32(), seed=-1), ValueError, "seed must be in"),
        (lambda: pack_signum(f32(), np.ones(9, int)), TypeError, "momenta must have dtype float32"),
        (
            lambda: pack_signum(f32(), np.frombuffer(f32().tobytes(), np.float32)),
            ValueError,
            "momenta must be writable",
        ),
        (
            lambda: pack_signum([f32(), f32()], [f32(), f32()], offsets=[0, 1]),
            ValueError,
            r"offsets must .* got \[0, 1\]",
        ),
        (lambda: pack_sparsign([f32()], budget=1, offsets=[-1]), ValueError, "offsets must"),
        (lambda: pack_sparsign(f32(), budget=0), ValueError, "budget must be positive"),
        (lambda: pack_sparsign(f32(), budget=1e39), ValueError, "budget must be in"),
        (
            lambda: pack_sparsign(f32(), budget=1, out=np.zeros(2, np.uint8)),
            ValueError,
            r"out must have shape \(2, 2\), got \(2,\)",
        ),
    ],
)
def test_errors_name_function_argument_expected_and_got(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", [np.float32, BF16])
def test_infinity_votes_once_and_is_forgotten(dtype):
    g = np.array([np.inf, -np.inf, 3.4e38, 1.0] * 40, dtype=np.float32)
    m = np.ones(g.size, dtype=dtype)
    plane, _, nans = pack_signum(g, m, beta=0.0)
    sign, _ = ref.pack(g)
    assert nans == 0 and np.array_equal(plane, sign)
    assert np.isfinite(m.astype(np.float32)).all() and (m[:2] == 1).all()
