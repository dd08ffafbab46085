"""Robust rules against NumPy references and ByzFL's documented vectors, in every framework."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from reference import rules as ref

from mpisign import robust
from mpisign.robust import (
    NNM,
    Bucketing,
    Bulyan,
    CenteredClipping,
    Clipping,
    GeometricMedian,
    Krum,
    Meamed,
    Mean,
    Median,
    MultiKrum,
    Pipeline,
    TrMean,
)

ml_dtypes = pytest.importorskip("ml_dtypes")

DOCUMENTED = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])
CLIPPED = [[0.53452248, 1.06904497, 1.60356745], [0.91168461, 1.13960576, 1.36752692]]
CLIPPED += [[1.00514142, 1.14873305, 1.29232469]]
MIXED = [[2.5, 3.5, 4.5], [2.5, 3.5, 4.5], [5.5, 6.5, 7.5]]
VECTORS = [
    (Mean(), [4, 5, 6]),
    (robust.Average(), [4, 5, 6]),
    (Median(), [4, 5, 6]),
    (TrMean(1), [4, 5, 6]),
    (GeometricMedian(), [3.78788764, 4.78788764, 5.78788764]),
    (GeometricMedian(nu=0.1, T=3), [3.78788764, 4.78788764, 5.78788764]),
    (Krum(1), [1, 2, 3]),
    (MultiKrum(1), [2.5, 3.5, 4.5]),
    (CenteredClipping(), [4, 5, 6]),
    (Meamed(1), [2.5, 3.5, 4.5]),
    (NNM(1), MIXED),
    (Clipping(2.0), CLIPPED),
]


@pytest.mark.parametrize(("rule", "expected"), VECTORS, ids=str)
def test_documented_vectors(rule, expected):
    X = DOCUMENTED
    of_torch = torch.tensor(X, dtype=torch.float32)
    for given, kind in [
        (X, np.ndarray),
        (of_torch, torch.Tensor),
        (list(X), np.ndarray),
        (list(of_torch), torch.Tensor),
    ]:
        out = rule(given)
        assert type(out) is kind
        np.testing.assert_allclose(np.asarray(out), expected, rtol=2e-7)


def test_bucketing_of_the_documented_vector():
    out = Bucketing(2)(DOCUMENTED)
    assert out.shape == (2, 3)
    halves = [[2.5, 3.5, 4.5], [4, 5, 6], [5.5, 6.5, 7.5]]
    rest = [[7, 8, 9], [4, 5, 6], [1, 2, 3]]
    assert out.tolist() in [[h, r] for h, r in zip(halves, rest, strict=True)]
    rng = np.random.default_rng(5)
    drawn = {str(Bucketing(2)(DOCUMENTED, rng=rng)) for _ in range(40)}
    assert len(drawn) == 3  # a generator moves on
    once = Bucketing(2)(DOCUMENTED, rng=np.random.default_rng(5))
    assert np.array_equal(once, Bucketing(2)(DOCUMENTED, rng=np.random.default_rng(5)))


def cases(n, f):
    """Every rule that can do with n rows of which f are hostile, and its reference."""
    yield Mean(), ref.mean
    yield Median(), ref.median
    yield TrMean(f), lambda X: ref.trimmed_mean(X, f)
    yield Meamed(f), lambda X: ref.meamed(X, f)
    yield Krum(f), lambda X: ref.krum(X, f)
    yield Krum(f, squared=False), lambda X: ref.krum(X, f, squared=False)
    if not f or n > 2 * f + 2:
        yield Krum(f, neighbours="n-f-2"), lambda X: ref.krum(X, f, neighbours=2)
    yield MultiKrum(f), lambda X: ref.multi_krum(X, f)
    m = max(n - 2 * f - 2, 1)
    yield MultiKrum(f, m), lambda X: ref.multi_krum(X, f, m)
    if not f or n >= 4 * f + 3:
        yield Bulyan(f), lambda X: ref.bulyan(X, f) if f else ref.mean(X)
    for T in (0, 1, 3, 8):
        yield GeometricMedian(T=T), lambda X, T=T: ref.geometric_median(X, T=T)
    for L in (0, 1, 3):
        yield CenteredClipping(L=L, tau=3), lambda X, L=L: ref.centered_clipping(X, None, L, 3)
    yield NNM(f), lambda X: ref.nnm(X, f)
    yield Clipping(4), lambda X: ref.clipping(X, 4)
    yield Pipeline(NNM(f), Krum(f)), lambda X: ref.krum(ref.nnm(X, f), f)
    yield Pipeline(NNM(f), TrMean(f)), lambda X: ref.trimmed_mean(ref.nnm(X, f), f)
    yield Pipeline(Clipping(4), Median()), lambda X: ref.median(ref.clipping(X, 4))
    yield (
        Pipeline(Clipping(4), NNM(f), GeometricMedian()),
        lambda X: ref.geometric_median(ref.nnm(ref.clipping(X, 4), f)),
    )


SIZES = [(1, 0), (2, 0), (3, 1), (4, 1), (5, 2), (7, 1), (8, 3), (11, 2), (20, 4)]


@pytest.mark.parametrize(("n", "f"), SIZES)
@pytest.mark.parametrize("d", [1, 3, 8, 33, 129, 4097])
def test_rules_match_their_references(n, f, d):
    X = np.random.default_rng([n, d]).normal(size=(n, d)) + 1
    before = X.copy()
    for rule, reference in cases(n, f):
        out = rule(X)
        np.testing.assert_allclose(out, reference(X), rtol=1e-9, atol=1e-12, err_msg=str(rule))
    assert np.array_equal(X, before)


@pytest.mark.parametrize(("n", "f"), SIZES)
def test_ties_go_to_the_first_row_and_to_the_lower_value(n, f):
    rng = np.random.default_rng(n)
    for d in (1, 2, 5):
        X = rng.integers(-1, 2, size=(n, d)).astype(np.float64)
        X[X == 0] *= rng.choice([1.0, -1.0], size=(X == 0).sum())  # of both signs
        for rule, reference in cases(n, f):
            if isinstance(rule, Pipeline):
                continue  # distances of mixed rows tie but for rounding
            out = rule(X)
            np.testing.assert_allclose(out, reference(X), rtol=1e-9, atol=1e-12, err_msg=str(rule))


TYPES = {"float32": 3e-6, "float16": 5e-3, "bfloat16": 4e-2, "float64": 1e-10}


@pytest.mark.parametrize("name", TYPES)
def test_numpy_and_torch_give_the_same_in_every_dtype(name):
    dtype = ml_dtypes.bfloat16 if name == "bfloat16" else np.dtype(name)
    X = np.random.default_rng(1).normal(size=(11, 301)).astype(dtype)
    T = torch.from_numpy(X.astype(np.float64)).to(getattr(torch, name))
    for rule, reference in cases(11, 2):
        out, of_torch = rule(X), rule(T)
        assert out.dtype == X.dtype and of_torch.dtype == T.dtype
        assert np.array_equal(out.astype(np.float64), of_torch.double().numpy()), rule
        expected = reference(X.astype(np.float64))
        np.testing.assert_allclose(
            out.astype(np.float64), expected, rtol=0, atol=TYPES[name], err_msg=str(rule)
        )


def views(X):
    """The same rows with other strides."""
    yield "Fortran", np.asfortranarray(X)
    yield "every other", np.repeat(np.repeat(X, 2, axis=0), 3, axis=1)[::2, ::3]
    yield "reversed", X[::-1, ::-1].copy()[::-1, ::-1]
    yield "odd start", np.append(X[0, :1], X.ravel())[1:].reshape(X.shape)
    yield "read-only", np.frombuffer(X.tobytes(), X.dtype).reshape(X.shape)


def test_strides_do_not_matter():
    X = np.random.default_rng(2).normal(size=(7, 61)).astype(np.float32)
    for rule, _ in cases(7, 1):
        plain = rule(X)
        for name, view in views(X):
            assert np.array_equal(rule(view), plain), (rule, name)
        turned = torch.from_numpy(X.T.copy()).T
        assert np.array_equal(rule(turned).numpy(), plain), rule
        one = np.broadcast_to(X[:1], X.shape)
        np.testing.assert_allclose(rule(one), rule(one.copy()), err_msg=str(rule))


def test_one_row_no_columns_and_gradients_of_a_graph():
    row = np.array([[0.5, -1.0, 0.25]])
    for rule, _ in cases(1, 0):
        if rule not in (GeometricMedian(T=0), CenteredClipping(L=0, tau=3)):
            np.testing.assert_allclose(rule(row).reshape(-1), row[0], err_msg=str(rule))
        assert rule(np.empty((1, 0), np.float32)).shape[-1] == 0
    X = torch.from_numpy(DOCUMENTED).requires_grad_()
    assert not Median()(X).requires_grad and not NNM(1)([*X]).requires_grad


def test_centered_clipping_goes_on_from_the_last_result():
    X = np.random.default_rng(3).normal(size=(5, 9)) * 10
    rule, m = CenteredClipping(L=2, tau=4.0), np.zeros(9)
    for _ in range(3):
        v = rule(X)
        m = ref.centered_clipping(X, m, 2, 4.0)
        np.testing.assert_allclose(v, m, rtol=1e-12)
        rule = rule.after(v)
    # Ranks compare rules: what they clip around is not part of that.
    assert rule == CenteredClipping(L=2, tau=4.0) and "m=" not in repr(rule)
    of_torch = CenteredClipping(m=torch.from_numpy(m), L=2, tau=4.0)(torch.from_numpy(X))
    np.testing.assert_allclose(of_torch.numpy(), rule(X), rtol=1e-12)
    mixed, rule = Pipeline(NNM(1), rule), rule
    behind = mixed.after(v)(X)
    np.testing.assert_allclose(behind, ref.centered_clipping(ref.nnm(X, 1), m, 2, 4.0), rtol=1e-11)
    assert mixed.after(v) == mixed and mixed.after(v) is not mixed
    for fixed in (Median(), Pipeline(NNM(1), Median()), Pipeline(Clipping(), CenteredClipping())):
        assert fixed.after(m) is fixed
    with pytest.raises(ValueError, match=r"CenteredClipping: m must be a vector \(3,\)"):
        rule(DOCUMENTED)
    with pytest.raises(ValueError, match="of X's framework"):
        rule(torch.from_numpy(X))


@pytest.mark.parametrize(("n", "f"), [(5, 1), (11, 2)])
def test_shards_measure_and_reduce_as_the_whole(n, f):
    """What collectives do: measures add up, weights of their sum, each shard reduced by itself."""
    X = np.random.default_rng(4).normal(size=(n, 100))
    shards = [X[:, :37], X[:, 37:41], X[:, 41:]]
    for rule, _ in cases(n, f):
        parts = [rule.measure(shard) for shard in shards]
        squared = sum(parts) if rule.needs_distances else None
        weights = rule.weights(squared, n, np.random.default_rng(0))
        assert weights is None or weights.dtype == np.float64
        mixed = [s if weights is None else robust.rows.mix(weights, s) for s in shards]
        whole = np.concatenate([rule.reduce(y) for y in mixed], axis=-1)
        np.testing.assert_allclose(whole, rule(X), rtol=1e-9, atol=1e-12, err_msg=str(rule))


def test_importing_the_rules_imports_no_framework():
    code = (
        "import sys, mpisign.robust as r; r.by_name('nnm+krum', 1); "
        "print([m for m in ('torch', 'cupy', 'mpi4py', 'horovod', 'scipy') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert out.stdout.strip() == "[]", out.stderr
