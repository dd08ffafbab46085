"""Hostile rows: what is not finite never reaches a result, what is stays within its bounds."""

from __future__ import annotations

import itertools
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import rules as ref

from mpisign import robust

LARGE = float(np.finfo(np.float32).max)
HOSTILE = [np.nan, np.inf, -np.inf, 1e38, -1e38, LARGE, -LARGE, 1e19, 0.0, -0.0, 1e-45, 3.0]


def rules(n, f):
    """Every rule that can do with n rows of which f are hostile."""
    of_f = [robust.TrMean, robust.Meamed, robust.Krum, robust.MultiKrum, robust.Bulyan, robust.NNM]
    yield from [
        robust.Mean(),
        robust.Median(),
        robust.GeometricMedian(),
        robust.CenteredClipping(L=1, tau=2),
    ]
    yield from [robust.CenteredClipping(L=4, tau=2), robust.Clipping(), robust.Bucketing(2)]
    yield from [kind(f) for kind in of_f if kind is not robust.Bulyan or not f or n >= 4 * f + 3]
    yield from [robust.Krum(f, squared=False), robust.MultiKrum(f, 1)]
    if not f or n > 2 * f + 2:
        yield from [robust.Krum(f, "n-f-2", False), robust.MultiKrum(f, 1, "n-f-2")]
    yield from [
        robust.Pipeline(robust.NNM(f), rule)
        for rule in (robust.Median(), robust.TrMean(f), robust.Krum(f))
    ]
    yield from [
        robust.Pipeline(robust.NNM(f), rule)
        for rule in (robust.GeometricMedian(), robust.CenteredClipping(L=2))
    ]
    yield from [
        robust.Pipeline(robust.Clipping(), rule)
        for rule in (robust.Median(), robust.Krum(f), robust.GeometricMedian())
    ]
    yield robust.Pipeline(robust.Bucketing(2), robust.GeometricMedian())
    if -(-n // 2) > 2 * f:
        yield from [
            robust.Pipeline(robust.Bucketing(2), rule)
            for rule in (robust.TrMean(f), robust.MultiKrum(f))
        ]


def bounds(rule, honest, f):
    """The least and the largest value of each coordinate that the rule may give, or None."""
    low, high = honest.min(axis=0), honest.max(axis=0)
    width = high - low
    n = len(honest) + f
    # Whatever Krum takes is no further from an honest row than its score lets it be.
    scored = np.sqrt(n * ref.squared_distances(honest).max())
    if isinstance(rule, (robust.Median, robust.TrMean)):
        return low, high
    if isinstance(rule, (robust.Meamed, robust.Bulyan)):
        return low - width, high + width
    if isinstance(rule, (robust.Krum, robust.MultiKrum)):
        squared = n * scored if not rule.squared else scored
        return low - squared, high + squared
    if isinstance(rule, robust.CenteredClipping):
        return -rule.L * rule.tau, rule.L * rule.tau
    if isinstance(rule, robust.GeometricMedian):
        most = 20 * max(np.linalg.norm(honest, axis=1).max(), rule.nu)
        return -most, most
    if isinstance(rule, robust.Pipeline) and isinstance(rule.mixings[0], robust.NNM):
        # A row is mixed of rows no further than the furthest honest one.
        within = np.sqrt(ref.squared_distances(honest).max())
        if isinstance(rule.rule, (robust.Median, robust.TrMean)):
            return low - within, high + within
    return None


@st.composite
def attacked(draw):
    n = draw(st.integers(1, 11))
    f = draw(st.integers(0, (n - 1) // 2))
    d = draw(st.integers(1, 9))
    seed = draw(st.integers(0, 2**20))
    scale = draw(st.sampled_from([1e-3, 1.0, 1e3]))
    X = np.random.default_rng(seed).normal(size=(n, d)) * scale
    for row in range(f):
        X[row] = [draw(st.sampled_from(HOSTILE)) for _ in range(d)]
    return X[np.random.default_rng(seed).permutation(n)].astype(np.float32), X[f:], f


@settings(max_examples=int(os.environ.get("MPISIGN_TEST_EXAMPLES", "30")), deadline=None)
@given(attacked())
def test_hostile_rows_never_make_a_result_that_is_not_finite(case):
    X, honest, f = case
    honest = honest.astype(np.float32).astype(np.float64)
    for rule in rules(len(X), f):
        rng = np.random.RandomState(0)
        out = rule(X, rng=rng)
        assert np.isfinite(out).all(), rule
        assert np.isfinite(rule(torch.from_numpy(X)).numpy()).all(), rule
        within = bounds(rule, honest, f)
        if within is not None:
            spare = 1e-5 * np.abs(honest).max() + 1e-30
            low, high = within[0] - spare, within[1] + spare
            assert (low <= out).all() and (out <= high).all(), (rule, out, within)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_rows_that_are_not_finite_are_as_if_they_had_not_come(bad, dtype):
    X = np.random.default_rng(1).normal(size=(11, 67)).astype(dtype)
    X[3, 66] = X[8, 0] = bad
    others = np.delete(X, [3, 8], axis=0)
    for rule in rules(11, 2):
        seeds = [np.random.default_rng(0), np.random.default_rng(0)]
        assert np.array_equal(rule(X, rng=seeds[0]), rule.left_with(9, 2)(others, rng=seeds[1])), (
            rule
        )
        with pytest.raises(ValueError, match="got 11 rows, none of them finite"):
            rule(np.full_like(X, bad))
        # More of them than f: the others' mean, or what the rule makes of no hostile row.
        alone = np.full_like(X, bad)
        alone[5] = 1.0
        assert np.isfinite(rule(alone)).all(), rule


def test_float64_rows_whose_squares_would_overflow_are_left_out():
    X = np.random.default_rng(2).normal(size=(7, 5))
    X[2, 1] = 1e200
    for rule in rules(7, 1):
        seeds = [np.random.default_rng(0), np.random.default_rng(0)]
        out = rule.left_with(6, 1)(np.delete(X, 2, axis=0), rng=seeds[0])
        assert np.array_equal(rule(X, rng=seeds[1]), out), rule


def test_what_can_do_with_n_rows_can_do_with_fewer():
    """Rows are left out after ``check``, on whichever rank: nothing may fail after that."""
    for n, f in itertools.product(range(1, 16), range(8)):
        for rule in rules(n, f):
            try:
                rule.check(n)
            except ValueError:
                continue
            for k in range(1, n):
                rule.fewer(k).check(n - k)


@pytest.mark.parametrize("times", [1e3, 1e8, 1e12])
def test_distances_alone_suffice_however_far_a_row_is(times):
    """The products of a far row with the others are lost in its distances; only they are."""
    X = np.random.default_rng(3).normal(size=(9, 50)) + 5
    X[4] *= times
    for rule, expected in [
        (robust.GeometricMedian(T=6), ref.geometric_median(X, T=6)),
        (robust.CenteredClipping(L=5, tau=10), ref.centered_clipping(X, L=5, tau=10)),
        (
            robust.Pipeline(robust.Clipping(9), robust.GeometricMedian()),
            ref.geometric_median(ref.clipping(X, 9)),
        ),
        (
            robust.Pipeline(robust.Clipping(9), robust.MultiKrum(2)),
            ref.multi_krum(ref.clipping(X, 9), 2),
        ),
    ]:
        np.testing.assert_allclose(rule(X), expected, atol=1e-2, err_msg=str(rule))


def test_rows_close_together_far_from_the_origin_are_told_apart():
    rng = np.random.default_rng(4)
    X = rng.normal(size=(9, 30)) * 1e-3 + 1e5
    np.testing.assert_allclose(
        robust.GeometricMedian(nu=1e-6, T=6)(X), ref.geometric_median(X, 1e-6, 6), rtol=1e-9
    )
    mixed = ref.nnm(X, 2)
    np.testing.assert_allclose(
        robust.Pipeline(robust.NNM(2), robust.Krum(2))(X), ref.krum(mixed, 2), rtol=1e-15
    )


ERRORS = [
    (
        lambda: robust.Krum(2)(np.ones((4, 3))),
        ValueError,
        r"Krum: 2 f must be below n, got f=2, n=4",
    ),
    (
        lambda: robust.Krum(1, "n-f-2")(np.ones((4, 3))),
        ValueError,
        r"Krum: 2 f \+ 2 must be below n for",
    ),
    (
        lambda: robust.TrMean(1)(np.ones((2, 3))),
        ValueError,
        r"TrMean: 2 f must be below n, got f=1, n=2",
    ),
    (
        lambda: robust.Bulyan(1)(np.ones((6, 3))),
        ValueError,
        r"Bulyan: n must be at least 4 f \+ 3, got",
    ),
    (lambda: robust.NNM(3)(np.ones((3, 3))), ValueError, r"NNM: f must be below n, got f=3, n=3"),
    (
        lambda: robust.Pipeline(robust.Bucketing(2), robust.Krum(1))(np.ones((4, 3))),
        ValueError,
        r"Krum: 2 f must be below n, got f=1, n=2",
    ),
    (
        lambda: robust.Median()(np.ones((0, 3))),
        ValueError,
        r"Median: X must have at least one row, got 0",
    ),
    (lambda: robust.Median()([]), ValueError, "got an empty list"),
    (
        lambda: robust.Median()(np.ones(3)),
        ValueError,
        r"Median: X must have shape \(n, d\) .* \(3,\)",
    ),
    (
        lambda: robust.Median()(np.ones((2, 2), int)),
        TypeError,
        "Median: X must have dtype float32, ",
    ),
    (lambda: robust.Median()([[1.0, 2.0]]), TypeError, r"Median: X\[0\] must be a NumPy array"),
    (lambda: robust.Median()([np.ones(2), np.ones(3)]), ValueError, "vectors of one length, dtype"),
    (lambda: robust.Median()([np.ones(2), torch.ones(2)]), ValueError, "device and framework"),
    (lambda: robust.Median()([np.ones((2, 2))]), ValueError, "list of vectors"),
    (lambda: robust.Krum(-1), ValueError, r"Krum: f must be an integer from 0, got -1"),
    (lambda: robust.Krum(1.0), ValueError, r"Krum: f must be an integer from 0, got 1.0"),
    (lambda: robust.Meamed(True), ValueError, r"Meamed: f must be an integer from 0, got True"),
    (
        lambda: robust.Krum(1, "n-f"),
        ValueError,
        "Krum: neighbours must be 'n-f-1' or 'n-f-2', got 'n-f'",
    ),
    (lambda: robust.MultiKrum(1, 0), ValueError, r"MultiKrum: m must be an integer from 1, got 0"),
    (
        lambda: robust.GeometricMedian(0.0),
        ValueError,
        r"GeometricMedian: nu must be a finite number abov",
    ),
    (
        lambda: robust.GeometricMedian(T=-1),
        ValueError,
        r"GeometricMedian: T must be an integer from 0",
    ),
    (
        lambda: robust.CenteredClipping(tau=-1.0),
        ValueError,
        r"CenteredClipping: tau must be a finite num",
    ),
    (
        lambda: robust.CenteredClipping(m=[1.0]),
        TypeError,
        r"CenteredClipping: m must be a NumPy or CuPy",
    ),
    (lambda: robust.Bucketing(0), ValueError, r"Bucketing: s must be an integer from 1, got 0"),
    (
        lambda: robust.Clipping(float("nan")),
        ValueError,
        r"Clipping: c must be a finite number from 0",
    ),
    (
        lambda: robust.Pipeline(robust.Krum(1), robust.Median()),
        TypeError,
        "Pipeline: all but the last must be mixings",
    ),
    (lambda: robust.Pipeline(robust.NNM(1)), TypeError, "Pipeline: the last must be a rule"),
    (lambda: robust.Pipeline(), TypeError, "Pipeline: the last must be a rule"),
    (
        lambda: robust.Pipeline(robust.Clipping(), robust.CenteredClipping(np.ones(2))),
        ValueError,
        "behind Clipping",
    ),
    (lambda: robust.by_name("krumm"), ValueError, r"by_name: name .* \(did you mean 'krum'\?\)"),
    (lambda: robust.by_name("nnm"), ValueError, "by_name: name must be one of mean, median, "),
    (lambda: robust.by_name("median+krum"), ValueError, r"after any of nnm\+, bucketing\+"),
    (lambda: robust.by_name(3), ValueError, "by_name: name must be one of"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize("case", range(len(ERRORS)))
def test_errors_name_function_argument_expected_and_got(case):
    call, kind, match = ERRORS[case]
    with pytest.raises(kind, match=match):
        call()


def test_rules_by_name():
    for name, kind in robust.RULES.items():
        rule = robust.by_name(name, f=1)
        assert type(rule) is kind and getattr(rule, "f", 1) == 1
    assert robust.by_name("krum", 2) == robust.Krum(2) != robust.Krum(1)
    assert robust.by_name("nnm+krum", 1) == robust.Pipeline(robust.NNM(1), robust.Krum(1))
    assert robust.by_name("bucketing+median", 1) == robust.Pipeline(
        robust.Bucketing(2), robust.Median()
    )
    made = robust.by_name("clipping+nnm+trimmed_mean", 2)
    assert made == robust.Pipeline(robust.Clipping(), robust.NNM(2), robust.TrMean(2))
    assert made.fewer(1) == robust.Pipeline(robust.Clipping(), robust.NNM(1), robust.TrMean(1))
    assert len({robust.by_name(name) for name in robust.RULES}) == len(robust.RULES)
