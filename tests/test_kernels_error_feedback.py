"""Error feedback with block scales, packed in one pass: bit for bit against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import reference as ref
import samples
import torch
from fused_arrays import DTYPES, KEYS, ZEROS, any_isa, at_odd_place, awkward, isa, isa_restored
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import mpisign
from mpisign import _kernels
from mpisign.backend import threads
from mpisign.planes import pack_error_feedback

assert isa and isa_restored  # fixtures
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")


def check(g, old, block=None, zeros="positive", nan="abstain", rate=1.0, offset=0):
    e = at_odd_place(old, g.size)
    result = pack_error_feedback(
        g, e, rate=rate, block=block, zeros=zeros, nan=nan, offset=offset, **KEYS
    )
    sign, votes, scales, new, *counts = ref.error_feedback(
        g, old, rate, block, zeros, offset=offset, **KEYS
    )
    two = zeros == "abstain" or nan == "abstain"
    assert np.array_equal(result[0], np.stack([sign & votes, votes]) if two else sign)
    assert samples.same(result[1], scales)
    assert samples.same(e, new)
    assert list(result[2:]) == counts
    return result


@pytest.mark.parametrize("dtype", DTYPES)
def test_error_feedback_matches_the_reference(isa, dtype):
    for length in samples.LENGTHS:
        g, e = at_odd_place(awkward(length, 1, dtype), length), samples.awkward(length, 2)
        for zeros, block, nan in (
            ("positive", None, "raise"),
            ("random", 256, "abstain"),
            ("abstain", 1024, "raise"),
        ):
            check(g, e, block, zeros, nan, rate=0.1, offset=8 * 19)


def plain_numbers(length, seed):
    return np.random.default_rng(seed).standard_normal(length, dtype=np.float32)


def test_blocks_longer_than_the_cache_and_rows_of_rows_of_sums(isa):
    length = 65_536 * 3 + 257
    g, e = plain_numbers(length, 3), plain_numbers(length, 4)
    for block in (65_536, 65_536 + 256, 2 * 65_536, None):
        check(g, e, block)
    g[-2], g[70_000] = np.nan, np.inf
    for block in (65_536, 65_536 + 256, None):
        check(g, e, block)


def test_one_block_of_more_rows_than_one_row_holds():
    length = 256 * 65_536 + 511
    g, e = plain_numbers(length, 5), np.zeros(length, dtype=np.float32)
    scales = pack_error_feedback(g, e)[1]
    assert scales[0] == ref.tree_sum(np.abs(g)) / np.float32(length)


def test_what_was_left_out_is_sent_later(isa):
    # The sum of what was sent and the residual is the sum of the gradients.
    sent, e = np.zeros(1000), np.zeros(1000, dtype=np.float32)
    total = np.zeros(1000)
    for step in range(50):
        g = plain_numbers(1000, 100 + step)
        plane, scales, _, _ = pack_error_feedback(g, e, block=256, zeros="positive")
        sent += np.repeat(scales, 256)[:1000] * mpisign.unpack(plane, 1000)
        total += g
    assert np.allclose(sent + e, total, atol=1e-4)


def test_values_that_are_not_finite_leave_no_trace(isa):
    g = np.array([1, np.nan, np.inf, -np.inf, -3, 0], dtype=np.float32)
    e = np.array([0, 5, 6, 7, 0, 0], dtype=np.float32)
    planes, scales, zeros, bad = pack_error_feedback(g, e, zeros="abstain")
    assert (zeros, bad) == (1, 3) and scales[0] == np.float32(4) / np.float32(6)
    assert e.tolist()[1:4] == [5, 6, 7] and e[5] == 0
    assert planes.tolist() == [[0b10000], [0b10001]]


def test_results_do_not_depend_on_threads(isa, monkeypatch):
    length = 600_001
    g, old = awkward(length, 6), samples.awkward(length, 7)
    for block in (512, 65_536 + 256, None):
        results = []
        for count in (1, 2, 3):
            monkeypatch.setattr(threads, "count", lambda count=count: count)
            e = old.copy()
            planes, scales, *counts = pack_error_feedback(g, e, block=block, **KEYS)
            results.append([e, planes, scales, np.array(counts)])
        for other in results[1:]:
            assert all(map(samples.same, results[0], other))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_torch_is_packed_as_numpy_is(dtype):
    g = torch.from_numpy(awkward(4097, 8)).to(dtype).reshape(17, 241).t()
    old = samples.awkward(4097, 9)
    e = torch.from_numpy(old.copy()).reshape(241, 17)
    planes, scales, *_ = pack_error_feedback(g, e, block=256, zeros="abstain")
    expected = ref.error_feedback(g.double().numpy(), old, block=256, zeros="abstain")
    assert isinstance(planes, torch.Tensor) and isinstance(scales, torch.Tensor)
    assert np.array_equal(planes[1].numpy(), expected[1])
    assert samples.same(scales.numpy(), expected[2])
    assert samples.same(e.numpy().reshape(-1), expected[3])


def test_results_go_where_they_are_told():
    g, e = plain_numbers(600, 1).reshape(20, 30), np.zeros((20, 30), dtype=np.float32)
    out, scales = np.empty(75, dtype=np.uint8), np.empty(3, dtype=np.float32)
    result = pack_error_feedback(g, e, block=256, out=out, scales=scales)
    assert result[0] is out and result[1] is scales


floats = st.floats(width=32)


@given(
    any_isa,
    hnp.arrays(np.float32, st.integers(1, 600), elements=floats),
    st.data(),
    st.sampled_from(ZEROS),
    st.sampled_from([None, 256, 512]),
    st.floats(-4, 4, width=32),
)
@settings(max_examples=150, deadline=None)
def test_any_floats(name, g, data, zeros, block, rate):
    _kernels.use_isa(name)
    check(g, data.draw(hnp.arrays(np.float32, g.size, elements=floats)), block, zeros, rate=rate)


def f32(n=9):
    return np.ones(n, dtype=np.float32)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (
            lambda: pack_error_feedback(f32(), f32(8)),
            ValueError,
            "pack_error_feedback: residual must have 9 coordinates .* got 8",
        ),
        (
            lambda: pack_error_feedback(f32(), np.ones(9)),
            TypeError,
            "residual must have .* float64",
        ),
        (lambda: pack_error_feedback(f32(), f32(18)[::2]), ValueError, "C-contiguous"),
        (lambda: pack_error_feedback(f32(300), f32(300), block=100), ValueError, "multiple of 256"),
        (lambda: pack_error_feedback(f32(), f32(), block=0), ValueError, "block must .* got 0"),
        (lambda: pack_error_feedback(f32(), f32(), rate=np.nan), ValueError, "rate must be in"),
        (lambda: pack_error_feedback(f32(), f32(), scales=f32(2)), ValueError, r"scales .*\(1,\)"),
        (lambda: pack_error_feedback([f32()] * 2, f32()), TypeError, "grad must be .* got list"),
    ],
)
def test_errors_name_function_argument_expected_and_got(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("block", [256, 512, None])
@pytest.mark.parametrize("length", [300, 2000, 70_000])
def test_a_sum_that_overflows_spoils_its_block_and_no_more(block, length):
    g = np.ones(length, dtype=np.float32)
    g[[3, 5]] = 3e38
    e = np.full(length, 0.25, dtype=np.float32)
    check(g, e, block, "abstain")
    _, scales, _, lost = pack_error_feedback(g, e, block=block)
    assert lost == min(block or length, length) and scales[0] == 0
    assert np.isfinite(e).all() and (e[:lost] == 0.25).all()
