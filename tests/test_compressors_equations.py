"""Every compressor's update equation over several steps, against a plain line of NumPy."""

from __future__ import annotations

import re
from functools import partial

import numpy as np
import pytest
import reference as ref
import samples
import torch
from reference.ranks import LOCAL_SEED
from test_compressors import gradients, packed

import mpisign
from mpisign import compressors, planes
from mpisign.compressors import (
    QSGD,
    Compression,
    Compressor,
    EFSign,
    EFSparsign,
    Lion,
    LionAvg,
    Muon,
    MuonAvg,
    NoisySign,
    OneBit,
    PackContext,
    Sign,
    Signum,
    Sparsign,
    StochasticSign,
    TernGrad,
    Uncompressed,
    resolve,
)
from mpisign.exchange.buckets import BucketLayout

SEED, RANK = 11, 3
NAN = float("nan")


def awkward_gradients(step):
    """Of all dtypes and odd sizes, with zeros, -0.0, infinities, and NaN in some steps."""
    grads = gradients(step)
    if step % 2:
        grads[1][step] = NAN
    return [*grads, torch.zeros(0, 3), torch.from_numpy(samples.awkward(700, step))]


def pack(compressor, grads, states, step, rates=None, rank=RANK):
    """(its planes (k, B), the bucket, the scales cut per gradient, NaNs)."""
    bucket = BucketLayout([g.numel() for g in grads])
    two = "abstain" in (compressor.zeros, compressor.nan)
    out = np.full((2 if two else 1, bucket.nbytes), 0xFF, dtype=np.uint8)
    lengths = [compressor.scales_of(g.numel()) for g in grads]
    scales = np.full(sum(lengths), NAN, dtype=np.float32)
    nans = compressor.pack(
        grads,
        states,
        out if two else out[0],
        bucket.offsets,
        PackContext(SEED, step, rank, rates, scales if compressor.scaled else None),
    )
    return out, bucket, np.split(scales, np.cumsum(lengths)[:-1]), nans


def place(bucket, i, step, rank=RANK):
    return {"seed": SEED, "step": step, "rank": rank, "offset": 8 * bucket.offsets[i]}


def numpy_of(g):
    return g.float().numpy().reshape(-1) if g.dtype != torch.float64 else g.numpy().reshape(-1)


@pytest.mark.parametrize("zeros", ["random", "abstain"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_lion(dtype, zeros):
    like = {"float32": np.float32, "bfloat16": pytest.importorskip("ml_dtypes").bfloat16}[dtype]
    c = Lion(beta1=0.8, beta2=0.95, momentum_dtype=dtype, zeros=zeros)
    states, others = ([{} for _ in range(7)] for _ in range(2))
    expected = [np.zeros(g.numel(), dtype=like) for g in awkward_gradients(0)]
    for step in range(4):
        grads = awkward_gradients(step)
        out, bucket, _, nans = pack(c, grads, states, step)
        found = 0
        for i, g in enumerate(grads):
            voted, expected[i] = ref.lion(numpy_of(g), expected[i], 0.8, 0.95)
            sign, votes = ref.pack(voted, zeros, **place(bucket, i, step))
            assert np.array_equal(out[0, bucket.span(i)], sign & votes)
            if zeros == "abstain":
                assert np.array_equal(out[1, bucket.span(i)], votes)
            m = states[i]["momentum"]
            assert m.shape == g.shape and m.dtype == getattr(torch, dtype)
            assert samples.same(m.float().numpy().reshape(-1), expected[i].astype(np.float32))
            found += int(np.isnan(voted).sum())
            # What a front end without planes votes on is the same.
            alone = c.compress(g, others[i]).numpy().reshape(-1)
            assert samples.same(alone, voted.astype(np.float32))
            assert torch.equal(others[i]["momentum"], m)
        assert nans == found and (found > 0) == bool(step % 2)
    assert torch.equal(c.compress_missing(grads[0], states[0]), states[0]["momentum"])
    assert (c.compress_missing(torch.ones(3), {}) == 0).all()


@pytest.mark.parametrize("zeros", ["positive", "random", "abstain"])
@pytest.mark.parametrize("block", [None, 256])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_ef_sign(block, zeros):
    c = EFSign(block=block, zeros=zeros)
    states = [{} for _ in range(7)]
    residuals = [np.zeros(g.numel(), np.float32) for g in awkward_gradients(0)]
    for step, rate in enumerate([0.1, 0.1, 0.003, 0.0, 1.0, 0.1]):
        grads = awkward_gradients(step)
        rates = [rate / (1 + i) for i in range(7)]
        out, bucket, scales, nans = pack(c, grads, states, step, rates)
        found = 0
        for i, g in enumerate(grads):
            rows, e = out[:, bucket.span(i)], states[i].get("residual")
            if rate == 0:  # nothing leaves, nothing changes
                assert not rows.any() and (scales[i] == 0).all()
            else:
                sign, mask, expected, residuals[i], _, bad = ref.error_feedback(
                    numpy_of(g), residuals[i], rates[i], block, zeros, **place(bucket, i, step)
                )
                assert np.array_equal(rows[0], sign & mask)
                assert zeros != "abstain" or np.array_equal(rows[1], mask)
                assert samples.same(scales[i], expected)
                assert len(expected) == c.scales_of(g.numel())
                found += bad
            assert e.shape == g.shape and e.dtype == torch.float32 and e.isfinite().all()
            assert samples.same(e.numpy().reshape(-1), residuals[i])
        assert nans == found


def test_what_ef_sign_sends_and_keeps_is_all_there_was():
    # One rank, any learning rates: x + e never strays from what SGD would have done.
    c, state = EFSign(), {}
    x = exact = np.zeros(301)
    for step, rate in enumerate([0.5, 0.5, 0.01, 0.0, 0.25, 1e-4]):
        g = torch.from_numpy(np.random.default_rng(step).standard_normal(301)).float()
        out, _, scales, _ = pack(c, [g], [state], step, [rate])
        mean = planes.weighted_sum(torch.from_numpy(out), torch.from_numpy(scales[0]), length=301)
        given = c.decompress(mean.clone(), state, rate)
        if rate:
            assert np.array_equal(given, mean.numpy() / np.float32(rate))
        x = x - rate * given.double().numpy()
        exact = exact - rate * g.double().numpy()
        assert np.allclose(x - state["residual"].double().numpy(), exact, atol=1e-6)
    assert not np.allclose(x, exact, atol=1e-3)


def test_onebit_keeps_the_mean_as_its_momentum():
    c = OneBit(momentum=0.75)
    state, m = {}, np.zeros(65, np.float32)
    for step in range(3):
        g = torch.from_numpy(samples.awkward(65, step)).to(torch.bfloat16)
        sent = c.compress(g, state)
        assert np.array_equal(
            sent.numpy(), np.float32(0.75) * m + np.float32(0.25) * g.float().numpy()
        )
        assert np.array_equal(state["momentum"], m)  # only what comes back changes it
        assert np.array_equal(c.compress_missing(g, state), np.float32(0.75) * m)
        mean = torch.from_numpy(np.random.default_rng(step).standard_normal(65)).float()
        assert torch.equal(c.decompress(mean, state, 0.1), mean)
        m = mean.numpy().copy()
    assert np.array_equal(state["momentum"], m)
    with pytest.raises(NotImplementedError, match=r"OneBit\.pack: a compressed mean packs twice"):
        packed(c, [g], [state])


def test_sparsign():
    c = Sparsign(budget=0.3)
    for step in range(3):
        grads = awkward_gradients(step)
        out, bucket, _, nans = pack(c, grads, [{}] * 7, step)
        for i, g in enumerate(grads):
            sign, votes = ref.sparsign(numpy_of(g), 0.3, **place(bucket, i, step))
            assert np.array_equal(out[:, bucket.span(i)], [sign, votes])
        assert nans == sum(int(g.isnan().sum()) for g in grads) == step % 2


@pytest.mark.parametrize("density", [0.25, 0.02])
@pytest.mark.parametrize("n", [0, 1, 151, 1 << 14, (1 << 14) + 1, 50_000])
def test_the_largest(n, density):
    """Whole and sampled thresholds: ties, few that are not 0, NaN, infinities, subnormals."""
    x = samples.awkward(n, 1)
    finite = np.where(np.isfinite(x), x, 2)
    few, coarse = x.copy(), np.round(8 * finite) / 8
    few[n // 100 :] = 0
    with_nan = x.copy()
    with_nan[::3] = NAN
    tiny = np.full(n, 1e-45, np.float32)
    for i, y in enumerate((finite, x, few, coarse, with_nan, tiny, -np.ones_like(x))):
        keys = {"seed": SEED, "step": i, "rank": RANK, "offset": 0}
        c = Signum(momentum=0.0, density=density, nan="abstain")
        grads = [torch.from_numpy(y)]
        out, *_, nans = pack(c, grads, [{}], i)
        assert np.array_equal(out, ref.largest(y, density, **keys)), i
        assert nans == np.isnan(y).sum()
        voted = np.unpackbits(out[1], count=n, bitorder="little")
        assert not voted[(y == 0) | np.isnan(y)].any()
        if n > 1000 and i in (0, 3, 5, 6):
            assert 0.8 * density < voted.mean() < 1.2 * density, i
        if n > 1000 and i == 6 or n > 1 << 14 and i == 0:  # each rank draws for itself
            assert not np.array_equal(out, pack(c, grads, [{}], i, rank=RANK + 1)[0])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", [Signum, Lion])
def test_a_density(kind, dtype):
    c, dense = kind(density=0.1, momentum_dtype=dtype), kind(momentum_dtype=dtype)
    states, plain = ([{} for _ in awkward_gradients(0)] for _ in range(2))
    for step in range(4):
        grads = awkward_gradients(step)
        sent = [
            dense.compress(g, s).float().numpy().reshape(-1)
            for g, s in zip(grads, plain, strict=True)
        ]
        out, bucket, *_ = pack(c, grads, states, step)
        for i, (x, state, other) in enumerate(zip(sent, states, plain, strict=True)):
            expected = ref.largest(x, 0.1, **place(bucket, i, step))
            assert np.array_equal(out[:, bucket.span(i)], expected), (step, i)
            assert torch.equal(state["momentum"], other["momentum"])  # sent or not, it stays


def test_a_density_of_1_is_the_plain_vote():
    assert Signum(density=1) == Signum() and Lion(density=1.0) == Lion(density=None)
    c = Lion(density=0.5, zeros="abstain")
    assert (c.zeros, c.ties, c.aggregate, Lion().aggregate) == (
        "abstain", "zero", "gathered_vote", "vote",
    )  # fmt: skip
    for make, text in [
        (lambda: Signum(density=0), "Signum: density must be None or in (0, 1], got 0"),
        (lambda: Signum(density=1.5), "None or in (0, 1], got 1.5"),
        (lambda: Lion(density=True), "got True"),
        (lambda: Lion(density=0.1, ties="positive"), "Lion: ties must be 'zero' with a density"),
        (lambda: Lion(density=0.1, zeros="positive"), "zeros must be 'abstain' with a density"),
        (lambda: LionAvg(density=0.1), "LionAvg: density must be None or 1, got 0.1"),
        (lambda: mpisign.Compression.detox(inner=Signum(density=0.1)), "Detox: inner must be"),
    ]:
        with pytest.raises(ValueError, match=re.escape(text)):
            make()


def test_ef_sparsign():
    c = EFSparsign(budget_local=2.0, budget_global=0.6)
    rounds = EFSparsign(budget_local=2.0, budget_global=0.2, local_steps=5)
    states = [{} for _ in range(7)]
    residuals = [np.zeros(g.numel(), np.float32) for g in awkward_gradients(0)]
    for step in range(4):
        grads = awkward_gradients(step)
        out, bucket, _, nans = pack(c, grads, states, step)
        assert nans == step % 2
        sums, _, _, _ = pack(rounds, grads, states, step)
        for i, g in enumerate(grads):
            keys, span = place(bucket, i, step), bucket.span(i)
            first = keys | {"seed": SEED ^ LOCAL_SEED}
            local = ref.local_steps([numpy_of(g)], 2.0, **first)
            assert np.array_equal(out[:, span], ref.sparsign(local, 0.6, **keys))
            assert np.array_equal(sums[:, span], ref.sparsign(numpy_of(g), 0.2, **keys))

            mean = np.float32(0.25) * np.random.default_rng(step).integers(-4, 5, g.numel())
            mean = mean.astype(np.float32)
            given = c.decompress(torch.from_numpy(mean.copy()).view(g.shape), states[i], 0.1)
            expected, residuals[i] = ref.server_residual(mean, residuals[i])
            if mean.size:
                assert given.shape == g.shape and np.array_equal(given.flatten(), expected)
                assert samples.same(states[i]["residual"].numpy().reshape(-1), residuals[i])


@pytest.mark.parametrize(
    "c, reference",
    [
        (NoisySign(scale=0.3, zeros="positive"), partial(ref.noisy_sign, scale=0.3)),
        (
            NoisySign(scale=0.3, noise="uniform", nan="abstain"),
            partial(ref.noisy_sign, scale=0.3, noise="uniform"),
        ),
        (StochasticSign(bound=2.0), partial(ref.stochastic_sign, bound=2.0)),
    ],
)
def test_noisy_signs(c, reference):
    for step in (0, 1, 2**40):
        grads = awkward_gradients(step % 7)
        before = [g.clone() for g in grads]
        out, bucket, _, nans = pack(c, grads, [{}] * 7, step)
        assert nans == sum(int(g.isnan().sum()) for g in grads)
        for i, g in enumerate(grads):
            keys = place(bucket, i, step)
            with np.errstate(over="ignore"):
                x = reference(numpy_of(g), **keys)
            sign, votes = ref.pack(x, c.zeros, **keys)
            assert np.array_equal(out[0, bucket.span(i)], sign & votes)
            assert c.nan != "abstain" or np.array_equal(out[1, bucket.span(i)], votes)
        assert samples.same_lists(map(numpy_of, before), map(numpy_of, grads))


@pytest.mark.parametrize(
    "c, reference", [(TernGrad(), ref.terngrad), (QSGD(nan="abstain"), ref.qsgd)]
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_terngrad_and_qsgd(c, reference):
    for step in range(4):
        grads = awkward_gradients(step)
        grads += [torch.zeros(9), torch.full((9,), 1e-40), torch.full((9,), 3e38)]
        out, bucket, scales, nans = pack(c, grads, [{}] * 10, step)
        found = 0
        for i, g in enumerate(grads):
            x = numpy_of(g).astype(np.float32)
            good = np.isfinite(x)
            *expected, s = reference(x, **place(bucket, i, step))
            found += int((~good).sum())
            if not x.size:
                assert c.scales_of(0) == 0 == len(scales[i])
                continue
            assert np.array_equal(scales[i], [s])
            assert np.array_equal(out[:, bucket.span(i)], expected)
        assert nans == found


def dense(c, g, rank, step=0):
    """What a rank sends, as numbers."""
    out, _, scales, _ = pack(c, [g], [{}], step, rank=rank)
    bits = ref.votes_of(out[:1], out[1:] if len(out) == 2 else None, g.numel())[0]
    return bits * (scales[0][0] if c.scaled else 1)


def test_ten_against_nine_times_minus_one():
    # Magnitude Matters: plain sign goes the wrong way for certain, sparsign seldom does.
    n, ranks = 40_000, range(10)
    u = [torch.full((n,), 10.0)] + [torch.full((n,), -1.0)] * 9
    for c, chances in ((Sign(), (0, 1, 0)), (Sparsign(budget=0.1), (0.386, 0.225, 0.390))):
        votes = np.sign(sum(dense(c, u[r], r) for r in ranks))
        for sign, p in zip((1, -1, 0), chances, strict=True):
            assert np.mean(votes == sign) == pytest.approx(p, abs=0.008 if 0 < p < 1 else 0)
    # Noise that is large against the gradients has the votes' sum follow theirs, which is + 1.
    for c in (StochasticSign(bound=10.0), NoisySign(scale=20.0)):
        assert np.mean([dense(c, u[r], r) for r in ranks]) > 0.002
    assert np.mean(dense(StochasticSign(bound=4.0), u[1], 1) > 0) == pytest.approx(3 / 8, abs=0.008)
    assert np.mean(dense(NoisySign(scale=1.0), u[1], 1) > 0) == pytest.approx(0.1587, abs=0.008)


@pytest.mark.parametrize("c", [TernGrad(), QSGD()])
def test_terngrad_and_qsgd_are_unbiased(c):
    g = torch.linspace(-1, 1, 8) ** 3
    mean = np.mean([dense(c, g, 0, step) for step in range(3000)], axis=0)
    assert np.allclose(mean, g.numpy(), atol=0.06)


def test_every_name_has_a_compressor():
    names = (
        "none sign signum lion lion_avg muon muon_avg ef_sign onebit sparsign ef_sparsign "
        "noisy_sign stochastic_sign terngrad qsgd robust detox accordion"
    ).split()
    assert list(compressors.COMPRESSORS) == names and mpisign.Compression is Compression
    for name in names:
        c = resolve("f", name)
        assert isinstance(c, Compressor) and c == getattr(Compression, name)()
        assert resolve("f", type(c)) == c and resolve("f", c) is c and hash(c) == hash(type(c)())
    assert Compression.signum(momentum=0.5) == Signum(momentum=0.5)
    assert resolve("f", "none") == Uncompressed() and resolve("f", "lion_avg") == LionAvg()
    with pytest.raises(ValueError, match=r"f: compression must .* 'accordion', got 'zip'$"):
        resolve("f", "zip")
    with pytest.raises(ValueError, match="got 'signnum' .did you mean 'signum'"):
        resolve("f", "signnum")
    with pytest.raises(ValueError, match="got None"):
        resolve("f", None)


@pytest.mark.parametrize(
    "kind, wrong, message",
    [
        (Lion, {"beta1": 1.0}, "Lion: beta1 must be in"),
        (Lion, {"beta2": -0.1}, "Lion: beta2 must be in"),
        (LionAvg, {"momentum_dtype": "float16"}, "LionAvg: momentum_dtype must be .* 'float16'"),
        (Muon, {"momentum": 1.0}, "Muon: momentum must be in"),
        (Muon, {"steps": 0}, "Muon: steps must be a number of iterations from 1, got 0"),
        (Muon, {"coefficients": (1.5, -0.5)}, "Muon: coefficients must be three numbers"),
        (Muon, {"coefficients": (9.0, 0, 0)}, "Muon: coefficients must keep singular values"),
        (Muon, {"eps": 0.0}, "Muon: eps must be a positive number"),
        (Muon, {"others": "sign"}, "Muon: others must be 'lion', 'signum', or .* got 'sign'"),
        (Muon, {"others_for": "head"}, "Muon: others_for must be patterns of names"),
        (MuonAvg, {"polar": True}, "MuonAvg: polar must be False"),
        (OneBit, {"momentum": 1.5}, "OneBit: momentum must be in"),
        (OneBit, {"block": 100}, "OneBit: block must be a positive multiple of 256 or None"),
        (EFSign, {"block": 0}, "EFSign: block must be .* got 0"),
        (EFSign, {"zeros": "zip"}, "EFSign: zeros must be one of"),
        (Sparsign, {"budget": 0}, "Sparsign: budget must be a positive number, got 0"),
        (Sparsign, {"budget": NAN}, "Sparsign: budget .* got nan"),
        (Sparsign, {"budget": "much"}, "Sparsign: budget .* got 'much'"),
        (Sparsign, {"zeros": "random"}, "Sparsign: zeros must be 'abstain'"),
        (EFSparsign, {"budget_global": float("inf")}, "EFSparsign: budget_global .* got inf"),
        (EFSparsign, {"budget_local": -1.0}, "EFSparsign: budget_local .* got -1"),
        (EFSparsign, {"local_steps": 0}, "EFSparsign: local_steps must be an integer from 1"),
        (NoisySign, {"scale": 0.0}, "NoisySign: scale must be a positive number"),
        (NoisySign, {"noise": "pink"}, "NoisySign: noise must be one of .* got 'pink'"),
        (StochasticSign, {"bound": -2}, "StochasticSign: bound must be a positive number"),
        (TernGrad, {"zeros": "positive"}, "TernGrad: zeros must be 'abstain'"),
        (QSGD, {"nan": "zip"}, "QSGD: nan must be one of"),
    ],
)
def test_arguments_are_checked(kind, wrong, message):
    with pytest.raises(ValueError, match=message):
        kind(**wrong)


def test_signs_without_their_scales_are_refused():
    for c in (EFSign(), TernGrad(), QSGD()):
        with pytest.raises(ValueError, match=r"\.pack: scales must be given"):
            packed(c, gradients(), [{} for _ in gradients()])
