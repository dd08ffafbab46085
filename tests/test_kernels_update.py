"""Votes added to arrays and applied to parameters, bit for bit against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import reference as ref
import samples
import torch
from fused_arrays import DTYPES, any_isa, at_odd_place, awkward, isa, isa_restored
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mpisign import _kernels
from mpisign.backend import threads
from mpisign.planes import unpack_add, update

assert isa and isa_restored  # fixtures
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")
TORCH_DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def vote(length, seed=0):
    signs, votes = np.random.default_rng([seed, length]).random((2, length)) < 0.6
    return np.stack([ref.bits_to_plane(signs & votes), ref.bits_to_plane(votes)])


@pytest.mark.parametrize("dtype", DTYPES)
def test_unpack_add_matches_the_reference(isa, dtype):
    for length in samples.LENGTHS:
        both, old = vote(length), awkward(length, 1, dtype)
        for planes, masks in ((both, both[1]), (both[0], None)):
            for scale in (0.3, -2.5, 0.0, 2.0**-140, 1e30):
                y = at_odd_place(old, length)
                assert unpack_add(planes, y, scale=scale) is y
                assert samples.same(y, ref.unpack_add(both[0], masks, old, scale))


@pytest.mark.parametrize("dtype", DTYPES)
def test_update_matches_the_reference(isa, dtype):
    for length in samples.LENGTHS:
        both, old = vote(length), awkward(length, 2, dtype)
        for planes, masks in ((both, both[1]), (both[0], None)):
            for rate, decay in ((0.1, 0.01), (1e-3, 0.0), (0.7, -0.3)):
                p = at_odd_place(old, length)
                assert update(planes, p, rate=rate, weight_decay=decay) is p
                assert samples.same(p, ref.update(both[0], masks, old, rate, decay))


@pytest.mark.parametrize("dtype", [np.float16, DTYPES[2]])
def test_every_value_of_16_bits(isa, dtype):
    old = np.arange(1 << 16, dtype=np.uint16).view(dtype)
    both = vote(1 << 16, 3)
    for scale in (0.0, 1e-7, 0.37, 1e4):
        assert samples.same(
            unpack_add(both, old.copy(), scale=scale), ref.unpack_add(*both, old, scale)
        )


def test_results_do_not_depend_on_threads(isa, monkeypatch):
    length = 600_001
    both, old = vote(length, 4), awkward(length, 4)
    results = []
    for count in (1, 2, 3):
        monkeypatch.setattr(threads, "count", lambda count=count: count)
        y = unpack_add(both, old.copy(), scale=0.3)
        results.append([y, update(both, old.copy(), rate=0.3, weight_decay=0.1)])
    for other in results[1:]:
        assert all(map(samples.same, results[0], other))


@pytest.mark.parametrize("dtype", TORCH_DTYPES)
def test_torch_is_updated_as_numpy_is(dtype):
    both = torch.from_numpy(vote(4097, 5))
    p = torch.nn.Parameter(torch.from_numpy(samples.awkward(4097, 6)).to(dtype).reshape(17, 241))
    old = p.detach().double().numpy().astype(DTYPES[TORCH_DTYPES.index(dtype)]).reshape(-1)
    assert update(both, p, rate=0.1, weight_decay=0.01) is p
    expected = ref.update(*both.numpy(), old, 0.1, 0.01)
    assert samples.same(p.detach().double().numpy().reshape(-1), expected.astype(np.float64))
    y = torch.from_numpy(old.astype(np.float64)).to(dtype)
    unpack_add(both, y, scale=0.1)
    expected = ref.unpack_add(*both.numpy(), old, 0.1)
    assert samples.same(y.double().numpy(), expected.astype(np.float64))


@given(
    any_isa,
    hnp.arrays(np.float32, st.integers(0, 200), elements=st.floats(width=32)),
    st.integers(0, 99),
    st.sampled_from(DTYPES),
    st.floats(-1e30, 1e30),
    st.floats(-1e3, 1e3),
)
@settings(max_examples=150, deadline=None)
def test_any_floats(name, x, seed, dtype, rate, decay):
    _kernels.use_isa(name)
    with np.errstate(all="ignore"):
        old, both = x.astype(dtype), vote(x.size, seed)
        expected = ref.update(*both, old, rate, decay)
    assert samples.same(update(both, old.copy(), rate=rate, weight_decay=decay), expected)
    with np.errstate(all="ignore"):
        expected = ref.unpack_add(*both, old, rate)
    assert samples.same(unpack_add(both, old.copy(), scale=rate), expected)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (
            lambda: unpack_add(np.zeros(2, np.uint8), np.zeros(17)),
            ValueError,
            "unpack_add: out must have 9 to 16 coordinates for planes of 2 bytes, got 17",
        ),
        (
            lambda: unpack_add(np.zeros(1, np.uint8), np.zeros((8, 2))[:, 0]),
            ValueError,
            "out must be C-contiguous",
        ),
        (
            lambda: update(np.zeros(1, np.uint8), np.frombuffer(bytes(32), np.float32), rate=1),
            ValueError,
            "update: parameter must be writable",
        ),
        (
            lambda: update(np.zeros(8), np.zeros(8), rate=1),
            TypeError,
            "planes must have dtype uint8",
        ),
        (lambda: update(np.zeros((3, 1), np.uint8), np.zeros(8), rate=1), ValueError, r"\(2, B\)"),
        (lambda: update(np.zeros(1, np.uint8), np.zeros(8, int), rate=1), TypeError, "int64"),
    ],
)
def test_errors_name_function_argument_expected_and_got(call, error, message):
    with pytest.raises(error, match=message):
        call()
