"""pack, majority and unpack against their NumPy references, bit for bit."""

from __future__ import annotations

import os

import numpy as np
import pytest
import reference as ref
import samples
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mpisign
from mpisign import planes

ml_dtypes = pytest.importorskip("ml_dtypes")
NUMPY_DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16, np.float64]
TORCH_DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


@pytest.mark.parametrize("length", samples.LENGTHS)
@pytest.mark.parametrize("dtype", NUMPY_DTYPES)
def test_pack_matches_the_reference(length, dtype):
    x = samples.awkward(length, 1, dtype)
    sign, votes = ref.pack(x.astype(np.float64))
    assert np.array_equal(mpisign.pack(x, zeros="positive"), sign)

    sign, votes = ref.pack(x.astype(np.float64), zeros="abstain")
    both = mpisign.pack(x, zeros="abstain")
    assert np.array_equal(both, np.stack([sign & votes, votes]))

    keys = {"seed": 2**40 + 7, "step": 11, "rank": 3, "offset": 8 * 19}
    sign, _ = ref.pack(x.astype(np.float64), zeros="random", **keys)
    assert np.array_equal(mpisign.pack(x, zeros="random", **keys), sign)


@pytest.mark.parametrize("dtype", TORCH_DTYPES)
@pytest.mark.parametrize("length", [0, 1, 65, 4097])
def test_torch_packs_as_numpy_does(length, dtype):
    x = torch.from_numpy(samples.awkward(length, 2)).to(dtype)
    plane = mpisign.pack(x, zeros="positive")
    assert isinstance(plane, torch.Tensor) and plane.dtype == torch.uint8
    assert np.array_equal(plane.numpy(), ref.pack(x.double().numpy())[0])
    y = mpisign.unpack(plane, x.shape, dtype=dtype)
    assert y.dtype == dtype
    assert torch.equal(y, torch.where(x < 0, -1.0, 1.0).to(dtype))


def test_zeros_and_nans_are_counted_in_the_same_pass():
    x = np.array([0.0, -0.0, 1.0, np.nan, -1.0, -np.nan, 0.0] * 37, dtype=np.float32)
    _, zeros, nans = planes.pack_census(x)
    assert (zeros, nans) == (3 * 37, 2 * 37)


@pytest.mark.parametrize("dtype", NUMPY_DTYPES)
def test_nan_is_never_a_vote(dtype):
    x = samples.awkward(1001, 3, dtype)
    x[::7] = np.nan
    x[3::7] = -x[::7][: x[3::7].size]  # NaN with its sign bit set
    with pytest.raises(ValueError, match=r"pack: x must hold no NaN .* got 286"):
        mpisign.pack(x)
    sign, votes = ref.pack(x.astype(np.float64))
    both = mpisign.pack(x, zeros="positive", nan="abstain")
    assert np.array_equal(both, np.stack([sign, votes]))
    y = mpisign.unpack(both, x.shape)
    assert np.array_equal(y == 0, np.isnan(x.astype(np.float64)))


def strided_views():
    base = samples.awkward(6 * 7 * 10 * 3, 4).reshape(6, 7, 10, 3)
    yield "transposed", base.transpose(3, 1, 0, 2)
    yield "every other", base[::2, 1:, ::3]
    yield "reversed", base[:, ::-1, :, ::-1]
    yield "broadcast", np.broadcast_to(base[:1, :, :1], (4, 7, 5, 3))
    yield "odd start", base.reshape(-1)[5:-3]
    yield "column", base.reshape(-1, 3)[:, 1]
    yield "scalar", base[0, 0, 0, 2]
    yield "0-d", np.array(-2.5, dtype=np.float32)
    yield "no rows", base[:0]


@pytest.mark.parametrize("name, x", [(n, np.asarray(v)) for n, v in strided_views()])
def test_strided_input_is_read_in_c_order(name, x):
    assert np.array_equal(mpisign.pack(x, zeros="positive"), ref.pack(x)[0])
    if all(s >= 0 for s in x.strides) and x.flags.writeable:
        plane = mpisign.pack(torch.from_numpy(x), zeros="positive")
        assert np.array_equal(plane.numpy(), ref.pack(x)[0])


def test_torch_parameters_and_unaligned_memory():
    p = torch.nn.Parameter(torch.randn(5, 7))
    assert np.array_equal(
        mpisign.pack(p, zeros="positive").numpy(), ref.pack(p.detach().numpy())[0]
    )
    raw = np.frombuffer(b"x" + samples.awkward(100, 5).tobytes(), dtype=np.uint8)[1:]
    x = raw.view(np.float32)
    assert x.ctypes.data % 4
    assert np.array_equal(mpisign.pack(x, zeros="positive"), ref.pack(x)[0])


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 100, 257])
@pytest.mark.parametrize("ties", ["positive", "random", "zero"])
def test_majority_matches_the_reference(n, ties):
    rng = np.random.default_rng(n)
    for length in (0, 1, 8, 65, 511, 513, 1031):
        signs = np.stack([ref.bits_to_plane(b) for b in rng.random((n, length)) < 0.5])
        masks = np.stack([ref.bits_to_plane(b) for b in rng.random((n, length)) < 0.6])
        keys = {"ties": ties, "seed": 5, "step": 2**33 + 1, "offset": 72, "length": length}
        for stack, reference in (
            (signs, ref.majority(signs, **keys)),
            (np.stack([signs, masks], axis=1), ref.majority(signs, masks, **keys)),
        ):
            expected = np.stack(reference) if ties == "zero" else reference[0]
            if ties == "zero":
                expected[0] &= expected[1]
            assert np.array_equal(mpisign.majority(stack, **keys), expected)
        torch_result = mpisign.majority(torch.from_numpy(signs), **keys)
        assert np.array_equal(torch_result.numpy(), mpisign.majority(signs, **keys))


def test_ties_come_as_often_as_the_specification_says():
    d, rng = 200_000, np.random.default_rng(0)
    for n, share in ((2, 0.5), (4, 0.375), (8, 0.273), (16, 0.196)):
        stack = rng.integers(0, 256, (n, d // 8), dtype=np.uint8)
        _, tied = planes.majority_census(stack, ties="zero")
        assert tied / d == pytest.approx(share, abs=0.005)


def test_random_ties_are_fair_and_differ_by_step():
    stack = np.zeros((2, 12_500), dtype=np.uint8)
    stack[1] = 255
    a = np.unpackbits(mpisign.majority(stack, ties="random", step=1))
    b = np.unpackbits(mpisign.majority(stack, ties="random", step=2))
    assert a.mean() == pytest.approx(0.5, abs=0.01)
    assert (a == b).mean() == pytest.approx(0.5, abs=0.01)


def test_a_shard_is_decided_like_the_whole():
    rng = np.random.default_rng(1)
    stack = rng.integers(0, 256, (4, 1000), dtype=np.uint8)
    whole = mpisign.majority(stack, seed=3, step=4)
    for first, last in ((0, 13), (13, 500), (500, 501), (501, 1000)):
        shard = mpisign.majority(stack[:, first:last], seed=3, step=4, offset=8 * first)
        assert np.array_equal(shard, whole[first:last])


@pytest.mark.parametrize("dtype", NUMPY_DTYPES)
@pytest.mark.parametrize("length", samples.LENGTHS)
def test_unpack_matches_the_reference(length, dtype):
    rng = np.random.default_rng(length)
    signs, votes = rng.random((2, length)) < 0.5
    both = np.stack([ref.bits_to_plane(signs & votes), ref.bits_to_plane(votes)])
    scale = np.asarray(0.3, dtype=dtype)
    expected = np.where(votes, np.where(signs, -scale, scale), 0).astype(dtype)
    result = mpisign.unpack(both, (length,), dtype=dtype, scale=0.3)
    assert result.tobytes() == expected.tobytes()
    assert mpisign.unpack(both[0], length, dtype=dtype).dtype == dtype


def test_a_forked_child_packs_too():
    x = samples.awkward(4_000_000, 7)
    mpisign.pack(x)  # starts the threads that a fork loses
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(mpisign.pack(x, zeros="positive"), ref.pack(x)[0]) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_results_go_where_out_says():
    x = samples.awkward(100, 6).reshape(4, 25)
    plane = np.full(13, 0xFF, dtype=np.uint8)
    assert mpisign.pack(x, zeros="positive", out=plane) is plane
    assert np.array_equal(plane, ref.pack(x)[0])
    back = np.empty((4, 25), dtype=np.float16)
    assert mpisign.unpack(plane, out=back) is back
    assert np.array_equal(back, np.where(x < 0, -1, 1))


def test_flushed_subnormals_change_nothing_on_any_thread():
    x, momentum, parameter = (np.full(1_000_000, v, np.float32) for v in (1e-42, 3e-40, 5e-39))
    results = []
    for flush in (False, True):
        torch.set_flush_denormal(flush)
        m, p = momentum.copy(), parameter.copy()
        plane, zeros, _ = planes.pack_signum(x, m)
        planes.update(plane, p, rate=1e-3)
        results.append((zeros, m.tobytes(), p.tobytes()))
    torch.set_flush_denormal(False)
    assert results[0] == results[1] and results[0][0] == 0


def test_tensors_without_memory_are_refused():
    x = torch.ones(1000)
    x.untyped_storage().resize_(0)
    with pytest.raises(TypeError, match="pack: x must be a tensor with memory of its own"):
        mpisign.pack(x)


@given(st.lists(st.lists(st.floats(width=32, allow_nan=False), min_size=5, max_size=5), min_size=1))
@settings(max_examples=200, deadline=None)
def test_pack_majority_unpack_is_the_sign_of_the_sum_of_signs(rows):
    xs = [np.array(row, dtype=np.float32) for row in rows]
    stack = np.stack([mpisign.pack(x, zeros="abstain") for x in xs])
    result = mpisign.unpack(mpisign.majority(stack, length=5, ties="zero"), 5)
    assert np.array_equal(result, ref.vote(xs))


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: mpisign.pack([1.0]), TypeError, "pack: x must be a NumPy array, .* got list"),
        (lambda: mpisign.pack(np.ones(3, int)), TypeError, "pack: x must have dtype .* got int64"),
        (lambda: mpisign.pack(np.ones(3, ">f4")), TypeError, "pack: x must have native byte order"),
        (lambda: mpisign.pack(torch.ones(3).to_sparse()), TypeError, "dense CPU or CUDA tensor"),
        (lambda: mpisign.pack(np.ones(3), zeros="up"), ValueError, "zeros must be one of .*'up'"),
        (lambda: mpisign.pack(np.ones(3), nan="x"), ValueError, "nan must be one of"),
        (lambda: mpisign.pack(np.ones(3), offset=4), ValueError, "offset must be a multiple of 8"),
        (lambda: mpisign.pack(np.ones(3), rank=-1), ValueError, "rank must be in"),
        (lambda: mpisign.pack(np.ones(3), seed=-1), ValueError, "seed must be in"),
        (lambda: mpisign.pack(np.ones(9), out=np.zeros(1, np.uint8)), ValueError, r"\(2,\), got"),
        (lambda: mpisign.pack(np.ones(8), out=np.zeros(1)), TypeError, "out must have dtype uint8"),
        (lambda: mpisign.majority(np.zeros(3, np.uint8)), ValueError, r"shape \(n, B\)"),
        (lambda: mpisign.majority(np.zeros((0, 3), np.uint8)), ValueError, "at least one row"),
        (lambda: mpisign.majority(np.zeros((2, 3), np.uint8), length=25), ValueError, "17 to 24"),
        (lambda: mpisign.majority(np.zeros((2, 3), np.uint8), ties="x"), ValueError, "ties must"),
        (lambda: mpisign.majority(np.zeros((2, 6), np.uint8)[:, ::2]), ValueError, "contiguous"),
        (
            lambda: mpisign.unpack(np.zeros(1, np.uint8), out=np.frombuffer(b"x" * 32, np.float32)),
            ValueError,
            "out must be writable",
        ),
        (lambda: mpisign.unpack(np.zeros(2, np.uint8), 17), ValueError, "9 to 16 coordinates"),
        (lambda: mpisign.unpack(np.zeros(2, np.uint8), dtype="int8"), TypeError, "dtype must be"),
        (lambda: mpisign.pack(np.ma.ones(3)), TypeError, "x must not be a masked array"),
        (lambda: mpisign.pack(np.ones(3), seed=1.5), TypeError, "integer"),
        (
            lambda: mpisign.pack(
                np.ones(9), zeros="abstain", out=torch.zeros(1, 2, dtype=torch.uint8).expand(2, 2)
            ),
            ValueError,
            "planes that do not overlap",
        ),
        (lambda: mpisign.unpack((np.zeros(2), 0, 0)), TypeError, r"got tuple \(of .* take \[0\]"),
        (lambda: mpisign.majority([(1, 2)] * 2), TypeError, r"stack\[0\] must be .* take \[0\]"),
        (lambda: mpisign.unpack(np.zeros(2)), TypeError, "planes must have dtype uint8"),
    ],
)
def test_errors_name_function_argument_expected_and_got(call, error, message):
    with pytest.raises(error, match=message):
        call()
