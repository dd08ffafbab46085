"""Weighted sums of sign planes and means of count planes, bit for bit against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import reference as ref
import samples
import torch
from fused_arrays import any_isa, isa, isa_restored
from hypothesis import given, settings
from hypothesis import strategies as st

from mpisign import _kernels
from mpisign.backend import threads
from mpisign.planes import mean_of_counts, plane_bytes, weighted_sum

assert isa and isa_restored  # fixtures
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")


def ballots(rows, length, seed, masked=False):
    """(rows, B), or (rows, 2, B) with masks, at an odd address and with odd strides."""
    bits = np.random.default_rng([seed, rows, length]).random((rows, 2, length)) < 0.5
    nbytes = plane_bytes(length)
    room = np.zeros((rows, 2, nbytes + 3), dtype=np.uint8)[:, :, 1 : 1 + nbytes]
    for row, (sign, mask) in zip(room, bits, strict=True):
        row[0], row[1] = ref.bits_to_plane(sign & mask), ref.bits_to_plane(mask)
    return room if masked else room[:, 0]


def expected_sum(stack, weights, **more):
    masked = stack.ndim == 3
    signs, masks = (stack[:, 0], stack[:, 1]) if masked else (stack, None)
    return ref.weighted_sum(signs, masks, weights, **more)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 8, 9, 17, 64])
def test_weighted_sum_matches_the_reference(isa, rows, masked):
    rng = np.random.default_rng(rows)
    for length in samples.LENGTHS[1:]:
        stack = ballots(rows, length, 1, masked)
        for block in (None, 8, 72, 512):
            blocks = -(-length // (block or length))
            weights = rng.standard_normal((rows, blocks), dtype=np.float32)
            result = weighted_sum(stack, weights, block=block, length=length)
            assert samples.same(result, expected_sum(stack, weights, block=block, length=length))
    assert weighted_sum(stack[:, ..., :0], np.ones((rows, 0), np.float32)).shape == (0,)


def test_weights_that_are_not_finite_stay_in_their_blocks(isa):
    stack = ballots(3, 100, 2, masked=True)
    weights = np.array([[1, np.inf], [np.nan, -0.0], [2.0**-149, 1]], dtype=np.float32)
    result = weighted_sum(stack, weights, block=64, length=100)
    assert samples.same(result, expected_sum(stack, weights, block=64, length=100))


def test_an_absent_vote_leaves_the_sum_as_it_is(isa):
    stack = np.zeros((2, 2, 1), dtype=np.uint8)
    assert samples.same(weighted_sum(stack, [np.inf, np.nan]), np.zeros(8, dtype=np.float32))


@pytest.mark.parametrize("voters", [1, 2, 3, 7, 8, 31, 64, 1000, 2**23 - 1])
def test_mean_of_counts_matches_the_reference(isa, voters):
    rng = np.random.default_rng(voters)
    planes = voters.bit_length()
    for length in (0, 1, 65, 4097):
        counts = rng.integers(0, voters + 1, length)
        bits = (counts >> np.arange(planes)[:, None]) & 1
        stack = np.stack([ref.bits_to_plane(b.astype(bool)) for b in bits])
        result = mean_of_counts(stack, voters, length=length)
        assert samples.same(result, ref.mean_of_counts(stack, voters, length))
        assert np.allclose(result, (voters - 2 * counts) / voters, atol=1e-6)


def test_a_long_sum_past_the_cache_at_any_address_with_any_threads(isa, monkeypatch):
    length = (1 << 20) + 77
    stack = ballots(3, length, 4)
    weights = np.float32([0.1, 0.2, 0.3])
    expected = expected_sum(stack, weights[:, None], length=length)
    for start in (0, 1, 5, 15):
        for count in (1, 2, 3):
            monkeypatch.setattr(threads, "count", lambda count=count: count)
            room = np.full(length + 32, 7, dtype=np.float32)
            out = room[start : start + length]
            assert weighted_sum(stack, weights, length=length, out=out) is out
            assert samples.same(out, expected)
            assert (room[:start] == 7).all() and (room[start + length :] == 7).all()


def test_a_long_mean_past_the_cache_at_any_address(isa):
    length = (1 << 20) + 77
    counts = ballots(5, length, 6)
    expected = ref.mean_of_counts(counts, 31, length)
    for start in (0, 1, 16):
        room = np.full(length + 48, 7, dtype=np.float32)
        start += -room.ctypes.data // 4 % 16
        out = room[start : start + length]
        assert mean_of_counts(counts, 31, length=length, out=out) is out
        assert samples.same(out, expected)
        assert (room[:start] == 7).all() and (room[start + length :] == 7).all()


def test_torch_and_lists_of_weights():
    stack = ballots(5, 1000, 5).copy()
    weights = [0.5, -1, 2, 0.25, 3]
    expected = expected_sum(stack, np.float32(weights)[:, None])
    for given_weights in (weights, torch.tensor(weights), torch.tensor(weights).double()):
        result = weighted_sum(torch.from_numpy(stack), given_weights)
        assert isinstance(result, torch.Tensor) and samples.same(result.numpy(), expected)
    out = torch.empty(10, 100)
    assert weighted_sum(stack, weights, length=1000, out=out) is out
    counts = torch.from_numpy(stack[:3])
    assert samples.same(mean_of_counts(counts, 5).numpy(), ref.mean_of_counts(stack[:3], 5))


@given(any_isa, st.data(), st.integers(1, 20), st.integers(1, 300), st.booleans())
@settings(max_examples=100, deadline=None)
def test_any_weights(name, data, rows, length, masked):
    _kernels.use_isa(name)
    block = data.draw(st.sampled_from([None, 8, 64, 128]))
    blocks = -(-length // (block or length))
    flat = data.draw(
        st.lists(st.floats(width=32), min_size=rows * blocks, max_size=rows * blocks)
        if rows * blocks < 50
        else st.just(np.random.default_rng(length).standard_normal(rows * blocks).tolist())
    )
    weights = np.array(flat, dtype=np.float32).reshape(rows, blocks)
    stack = ballots(rows, length, data.draw(st.integers(0, 99)), masked)
    with np.errstate(all="ignore"):
        expected = expected_sum(stack, weights, block=block, length=length)
    assert samples.same(weighted_sum(stack, weights, block=block, length=length), expected)


def zeros(*shape, dtype=np.uint8):
    return np.zeros(shape, dtype=dtype)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: weighted_sum(zeros(3), [1]), ValueError, r"weighted_sum: stack .* got \(3,\)"),
        (lambda: weighted_sum(zeros(2, 3), [1]), ValueError, r"weights must have shape \(2, 1\)"),
        (
            lambda: weighted_sum(zeros(1, 3), [[1, 1]], block=12),
            ValueError,
            "multiple of 8, got 12",
        ),
        (lambda: weighted_sum(zeros(1, 3), [1], block=8), ValueError, r"weights .* \(1, 3\)"),
        (lambda: weighted_sum(zeros(1, 3), [1], length=25), ValueError, "17 to 24"),
        (
            lambda: weighted_sum(zeros(1, 3), [1], out=zeros(24, dtype=np.float64)),
            ValueError,
            "out must be C-contiguous float32",
        ),
        (lambda: mean_of_counts(zeros(3), 1), ValueError, "mean_of_counts: counts must have shape"),
        (lambda: mean_of_counts(zeros(3, 2), 0), ValueError, "voters must be in .* got 0"),
    ],
)
def test_errors_name_function_argument_expected_and_got(call, error, message):
    with pytest.raises(error, match=message):
        call()
