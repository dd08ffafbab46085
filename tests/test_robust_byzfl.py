"""The same rules in ByzFL, on random data: a peer's answers, where it is installed.

pip install --no-deps byzfl==0.0.11   (of what it asks for, its rules need torch and scipy)
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types

import numpy as np
import pytest
import torch
from reference import rules as ref

from mpisign import robust


@pytest.fixture(scope="module")
def byzfl():
    """ByzFL's rules. Its package imports torchvision and seaborn, the rules do not: they are
    imported by their own names, from a package that has its path alone."""
    found = importlib.util.find_spec("byzfl")
    if found is None or importlib.util.find_spec("scipy") is None:
        pytest.skip("needs ByzFL: pip install --no-deps byzfl==0.0.11 scipy")
    package = types.ModuleType("byzfl")
    package.__path__ = list(found.submodule_search_locations or [])
    sys.modules["byzfl"] = package
    try:
        yield importlib.import_module("byzfl.aggregators")
    finally:
        for name in [m for m in sys.modules if m.split(".")[0] == "byzfl"]:
            del sys.modules[name]


def pairs(f):
    """Names in ByzFL, arguments of both."""
    yield from [("Average", ()), ("Median", ()), ("GeometricMedian", ())]
    yield from [("GeometricMedian", (0.5, 1)), ("GeometricMedian", (0.01, 10))]
    yield from [("CenteredClipping", (None, 1, 2.0)), ("CenteredClipping", (None, 5, 0.5))]
    yield from [(name, (f,)) for name in ("TrMean", "Krum", "MultiKrum", "Meamed", "NNM")]
    yield from [("Clipping", (2.0,)), ("Clipping", (0.25,))]


SIZES = [(3, 1), (4, 1), (5, 0), (8, 3), (9, 4), (20, 4)]


@pytest.mark.parametrize(("n", "f"), SIZES)
@pytest.mark.parametrize("d", [1, 17, 1000])
@pytest.mark.parametrize("seed", range(2))
def test_rules_give_what_byzfl_gives(byzfl, n, f, d, seed):
    X = np.random.default_rng([n, d, seed]).normal(size=(n, d)) + 0.3
    of_torch = torch.from_numpy(X.astype(np.float32))
    for name, arguments in pairs(f):
        ours, theirs = getattr(robust, name)(*arguments), getattr(byzfl, name)(*arguments)
        # ByzFL's Clipping writes into what it is given.
        expected, got = theirs(X.copy()), ours(X)
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12, err_msg=str(ours))
        theirs = getattr(byzfl, name)(*arguments)
        expected, got = theirs(of_torch.clone()), ours(of_torch)
        assert got.dtype == expected.dtype and got.shape == expected.shape
        np.testing.assert_allclose(
            got.numpy(), expected.numpy(), rtol=2e-5, atol=2e-6, err_msg=str(ours)
        )
        listed = getattr(byzfl, name)(*arguments)(list(X.copy()))
        np.testing.assert_allclose(ours(list(X)), listed, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("n", "s"), [(7, 2), (8, 2), (9, 3), (5, 1), (3, 4)])
def test_bucketing_draws_byzfl_s_order_from_its_generator(byzfl, n, s):
    X = np.random.default_rng(n).normal(size=(n, 11))
    np.random.seed(n)
    expected = byzfl.Bucketing(s)(X)
    got = robust.Bucketing(s)(X, rng=np.random.RandomState(n))
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    order = np.random.RandomState(n).permutation(n)
    np.testing.assert_allclose(got, ref.bucketing(X, s, order), rtol=1e-12)


def test_pipelines_give_what_byzfl_gives_one_after_the_other(byzfl):
    X = np.random.default_rng(1).normal(size=(11, 90)) + 0.3
    for last, arguments in [("Median", ()), ("TrMean", (3,)), ("GeometricMedian", ())]:
        for mixing, before in [("NNM", (3,)), ("Clipping", (4.0,))]:
            expected = getattr(byzfl, last)(*arguments)(getattr(byzfl, mixing)(*before)(X.copy()))
            ours = robust.Pipeline(
                getattr(robust, mixing)(*before), getattr(robust, last)(*arguments)
            )
            np.testing.assert_allclose(ours(X), expected, rtol=1e-9, atol=1e-12, err_msg=str(ours))


def test_centered_clipping_called_again_goes_on_where_byzfl_does(byzfl):
    theirs, ours = byzfl.CenteredClipping(L=2, tau=1.5), robust.CenteredClipping(L=2, tau=1.5)
    for step in range(4):
        X = np.random.default_rng(step).normal(size=(6, 40)) + 1
        expected, got = theirs(X), ours(X)
        np.testing.assert_allclose(got, expected, rtol=1e-10)
        ours = ours.after(got)


def test_both_refuse_as_many_hostile_rows(byzfl):
    for name in ("TrMean", "Krum", "MultiKrum", "Meamed"):
        for n, f in [(2, 1), (4, 2), (5, 3)]:
            for module in (byzfl, robust):
                with pytest.raises(ValueError, match=f"f={f}, n={n}"):
                    getattr(module, name)(f)(np.ones((n, 2)))
