"""The fused CUDA kernels, run on the CPU thread by thread, against the NumPy references."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import reference as ref
import samples
from cuda_on_cpu.gpu import DTYPES, KEYS, LENGTHS, random_of, with_nans

from mpisign import policies

SIGN, SIGNUM, LION, SPARSIGN = range(4)
BF16 = ml_dtypes.bfloat16
BETAS = (0.9, 0.99)


def parameters_of(rule, betas=BETAS):
    b1, b2 = betas
    return {
        SIGN: (0.0,) * 4,
        SIGNUM: (b1, 1 - b1, 0.0, 0.0),
        LION: (b1, 1 - b1, b2, 1 - b2),
        SPARSIGN: (0.3, 0.0, 0.0, 0.0),
    }[rule]


def reference(rule, x, momentum, zeros, offset, betas=BETAS):
    """(sign plane, mask plane, new momentum, zeros, NaNs) of one piece."""
    with np.errstate(invalid="ignore", over="ignore"):
        stored = momentum
        if rule == SPARSIGN:
            g = ref.widened(x)
            sign, mask = ref.sparsign(x, 0.3, offset=offset, **KEYS)
            return sign, mask, stored, int((g == 0).sum()), int(np.isnan(g).sum())
        v = x.astype(np.float64)
        if rule == SIGNUM:
            v, stored = ref.signum(x, momentum, betas[0])
        elif rule == LION:
            v, stored = ref.lion(x, momentum, *betas)
        sign, mask = ref.pack(v, zeros, offset=offset, **KEYS)
        return sign & mask, mask, stored, int((v == 0).sum()), int(np.isnan(v).sum())


def check_pieces(gpu, rule, xs, momenta, zeros, gap=1, odd=0, offset=8 * 5, betas=BETAS):
    """Pieces with ``gap`` bytes between them, which must stay as they are."""
    first, rows, total = [], [], gap
    for x in xs:
        first.append(total)
        total += -(-x.size // 8) + gap
    sign, mask = gpu.planes(total, odd=odd), gpu.planes(total)
    kept = []
    for x, m, at in zip(xs, momenta, first, strict=True):
        memory = gpu.put(m, odd)
        kept.append(memory)
        has = rule in (SIGNUM, LION)
        data = (gpu.put(x, odd).address, x.size, DTYPES.index(x.dtype.type), at)
        rows.append((*data, memory.address if has else 0, DTYPES.index(m.dtype.type)))
    census = gpu.kernels.pack_pieces(
        rule, parameters_of(rule, betas), np.array(rows, dtype=np.int64).tobytes(), sign.address,
        mask.address, policies.ZEROS.index(zeros), random_of(offset),
    )  # fmt: skip
    want_sign, want_mask = np.full((2, total), 0x5A, np.uint8)
    counts = np.zeros(2, np.int64)
    for x, m, at, memory in zip(xs, momenta, first, kept, strict=True):
        s, v, stored, *counted = reference(rule, x, m, zeros, offset + 8 * at, betas)
        want_sign[at : at + s.size], want_mask[at : at + s.size] = s, v
        counts += counted
        assert samples.same(memory.array, np.asarray(stored, dtype=m.dtype)), x.size
    assert np.array_equal(sign.array, want_sign)
    assert np.array_equal(mask.array, want_mask)
    assert list(census.array) == list(counts)


def momentum_for(x, seed, dtype):
    """Finite where the gradient is, now and then with NaN; zero where the gradient is, at times."""
    m = samples.awkward(x.size, seed, np.float32)
    m = np.where(np.isinf(m), np.float32(0.25), m)
    m[::13] = 0
    m[3::29] = np.nan
    return m.astype(dtype)


@pytest.mark.parametrize("rule", [SIGN, SIGNUM, LION, SPARSIGN])
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_piece(gpu, rule, dtype):
    for k, length in enumerate([*LENGTHS, 8192, 8193, 20011]):
        x = with_nans(samples.awkward(length, 1, dtype))
        m = momentum_for(x, 2, [np.float32, BF16][k % 2])
        check_pieces(gpu, rule, [x], [m], policies.ZEROS[k % 3], odd=k % 4)
        gpu.launcher.forget()


@pytest.mark.parametrize("rule", [SIGNUM, LION])
@pytest.mark.parametrize("of_momentum", [np.float32, BF16])
def test_a_momentum_that_would_not_be_finite_stays(gpu, rule, of_momentum):
    """Each value with each; at small betas, finite values that bf16 rounds to infinity."""
    most, most_bf16 = np.finfo(np.float32).max, float(ml_dtypes.finfo(BF16).max)
    values = [np.inf, -np.inf, np.nan, most, -most, 3.396e38, 3.3962e38, most_bf16, 1.0, -1.0, 0.0]
    olds = [np.inf, -np.inf, np.nan, most_bf16, -most_bf16, 1.0, -1.0, 0.0]
    x = np.repeat(np.array(values, np.float32), len(olds))
    m = np.tile(np.array(olds), len(values)).astype(of_momentum)
    for betas in (BETAS, (0.25, 0.25), (0.9, 0.25), (0.0, 0.0)):
        check_pieces(gpu, rule, [x, x[:-3]], [m, m[:-3]], "abstain", betas=betas)
        check_pieces(gpu, rule, [np.tile(x, 99)], [np.tile(m, 99)], "positive", betas=betas)


@pytest.mark.parametrize("rule", [SIGN, SIGNUM, LION, SPARSIGN])
def test_pieces_of_many_sizes_and_dtypes(gpu, rule):
    """150 pieces: more than one launch can bring along; empty ones among them."""
    rng = np.random.default_rng(rule)
    sizes = [int(n) for n in rng.integers(0, 300, 147)] + [8192, 9000, 30000]
    rng.shuffle(sizes)
    xs = [with_nans(samples.awkward(n, k, DTYPES[k % 4])) for k, n in enumerate(sizes)]
    momenta = [momentum_for(x, 3, [np.float32, BF16][k % 2]) for k, x in enumerate(xs)]
    for zeros in policies.ZEROS:
        check_pieces(gpu, rule, xs, momenta, zeros, gap=3)


def test_the_table_of_pieces_is_sent_once(gpu):
    x = gpu.put(samples.awkward(1000, 1))
    sign = gpu.planes(125)
    piece = np.array([x.address, 1000, 0, 0, 0, 0]).tobytes()
    for _ in range(3):
        gpu.kernels.pack_pieces(SPARSIGN, (0.3,) * 4, piece, sign.address, 0, 2, random_of())
    assert gpu.launcher.launched == ["store_table"] + ["pieces_sparsign"] * 3


def test_one_array_needs_no_table(gpu):
    check_pieces(gpu, SIGN, [samples.awkward(1000, 1)], [np.zeros(1000, np.float32)], "random")
    assert gpu.launcher.launched == ["pack_fp32"]


def test_no_pieces(gpu):
    for pieces in (b"", np.array([0, 0, 0, 0, 0, 0]).tobytes()):
        census = gpu.kernels.pack_pieces(SIGN, (0.0,) * 4, pieces, 0, 0, 0, random_of())
        assert list(census.array) == [0, 0] and gpu.launcher.launched == []


def check_feedback(gpu, length, block, dtype=np.float32, zeros="abstain", odd=0, rate=0.37):
    x = with_nans(samples.awkward(length, 9, dtype))
    e = np.random.default_rng(length).standard_normal(length).astype(np.float32)
    e[::7] = -ref.widened(x)[::7] * np.float32(rate)  # q is 0 there
    e[~np.isfinite(e)] = 0
    compare_feedback(gpu, x, e, block, zeros, odd, rate)


def compare_feedback(gpu, x, e, block, zeros="abstain", odd=0, rate=1.0):
    length = x.size
    grad, residual = gpu.put(x, odd), gpu.put(e, odd)
    sign, mask = gpu.planes(-(-length // 8), odd=odd), gpu.planes(-(-length // 8), odd=odd)
    blocks = -(-length // block) if length else 0
    scales = gpu.put(np.zeros(blocks, np.float32))
    census = gpu.kernels.error_feedback(
        grad.address, DTYPES.index(x.dtype.type), residual.address, length, rate, block,
        sign.address, mask.address, scales.address, policies.ZEROS.index(zeros), random_of(8 * 3),
    )  # fmt: skip
    with np.errstate(invalid="ignore", over="ignore"):
        want = ref.error_feedback(x, e, rate, block, zeros, offset=8 * 3, **KEYS)
    assert samples.same(scales.array, want[2]), (length, block)
    assert np.array_equal(sign.array, want[0] & want[1]), (length, block)
    assert np.array_equal(mask.array, want[1]), (length, block)
    assert samples.same(residual.array, want[3]), (length, block)
    assert tuple(census.array) == want[4:]
    gpu.launcher.forget()


@pytest.mark.parametrize("dtype", DTYPES)
def test_error_feedback(gpu, dtype):
    for k, length in enumerate(LENGTHS):
        for block in (256, 768, max(1, length), 10**6):
            check_feedback(gpu, length, block, dtype, policies.ZEROS[k % 3], odd=k % 3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "length, block",
    [(20011, 256), (20011, 2048), (20480, 5120), (30000, 8192), (20001, 9216), (50000, 16384)],
)
def test_error_feedback_in_one_pass(gpu, length, block, dtype):
    check_feedback(gpu, length, block, dtype, "random", odd=block // 256 % 2)
    assert gpu.launcher.launched == ["feedback" if block <= 8192 else "feedback_wide"]


def test_error_feedback_with_blocks_that_take_three_steps(gpu):
    for length, block, dtype in [
        (40003, 40003, np.float32), (65537, 10**9, np.float16), (150001, 65536, np.float32),
        (140000, 66048, BF16), (33300, 16640, np.float64),
    ]:  # fmt: skip
        check_feedback(gpu, length, block, dtype, "positive", odd=length % 2)
    assert "feedback_level" in gpu.launcher.launched


@pytest.mark.parametrize("zeros", policies.ZEROS)
@pytest.mark.parametrize(
    "length, block", [(2003, 256), (9000, 2048), (20001, 9216), (40003, 40003), (140000, 66048)]
)
def test_error_feedback_with_a_sum_that_overflows(gpu, length, block, zeros):
    """Two values of 3e38 in the second block (the only one): neither votes nor a new residual."""
    rng = np.random.default_rng(length)
    x, e = rng.standard_normal((2, length)).astype(np.float32)
    x[::5] = e[::5] = 0
    x[7::300] = np.nan
    first = block if block < length else 0
    x[first + 21], x[first + 213] = 3e38, -3e38
    compare_feedback(gpu, x, e, block, zeros)
    x[first + 213] = np.inf  # now the sum is finite
    compare_feedback(gpu, x, e, block, zeros)


@pytest.mark.parametrize("dtype", [np.float32, BF16])
@pytest.mark.parametrize("length, block", [(40000, 8192), (180000, 65536), (400000, 400000)])
def test_error_feedback_with_many_large_values(gpu, length, block, dtype):
    """No chunk of 256 overflows by itself; a block does."""
    x = np.ones(length, dtype)
    x[:block] = 1e33 if block == length else 5e34
    compare_feedback(gpu, x, np.zeros(length, np.float32), block)


def test_scales_that_underflow_are_no_overflow(gpu):
    for length in (256, 20000):
        x = np.zeros(length, np.float32)
        x[3] = -1e-45
        compare_feedback(gpu, x, np.zeros_like(x), length)
