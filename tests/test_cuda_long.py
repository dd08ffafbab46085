"""Beyond 2^31 coordinates and 2^32 bytes, on the CPU: only the last blocks of a launch are run.

The arrays are as long as they say, but memory that nobody touches costs nothing. An index that is
computed in 32 bits leads to another place: to zeros, or out of the buffer.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
import reference as ref
import samples
from cuda_on_cpu.gpu import KEYS, random_of

from mpisign import policies

pytestmark = pytest.mark.skipif(
    bool(os.environ.get("MPISIGN_TEST_CUDA")), reason="runs single blocks: fibres only"
)

LENGTH = 2**33 + 4 * 8192 + 77  # of coordinates
TAIL = 4096 + 77  # those looked at; they end the array and start at a byte
FIRST = LENGTH - TAIL
KEYS_AT = {**KEYS, "offset": FIRST}


@pytest.fixture
def tail(gpu):
    """(Gpu that runs last blocks only, function that gives a long array and a view of its end)."""
    gpu.launcher.last_blocks = 4

    def array(dtype, items=LENGTH, of_tail=TAIL):
        memory = gpu.launcher.sparse(items * np.dtype(dtype).itemsize).view(dtype)
        return memory.ctypes.data, memory[items - of_tail :]

    return gpu, array


def planes(array, rows=1):
    nbytes = -(-LENGTH // 8)
    made = [array(np.uint8, nbytes, -(-TAIL // 8)) for _ in range(rows)]
    return made[0] if rows == 1 else made


def test_pack(tail):
    gpu, array = tail
    at, x = array(np.float16)
    sign, plane = planes(array)
    x[:] = samples.awkward(TAIL, 1, np.float16)
    gpu.kernels.pack(at, 1, (LENGTH,), (2,), sign, 0, 1, random_of())
    want, mask = ref.pack(x.astype(np.float64), "random", **KEYS_AT)
    assert np.array_equal(plane, want & mask)


def test_pack_strided(tail):
    gpu, array = tail
    at, x = array(np.float16, 2 * LENGTH, 2 * TAIL)
    sign, plane = planes(array)
    x[:] = samples.awkward(2 * TAIL, 1, np.float16)
    gpu.kernels.pack(at, 1, (LENGTH,), (4,), sign, 0, 0, random_of())
    assert np.array_equal(plane, ref.pack(x[::2].astype(np.float64))[0])


def test_signum_as_the_second_piece(tail):
    gpu, array = tail
    (at, x), (momentum, m) = array(np.float16), array(np.float32)
    sign, plane = planes(array)
    x[:], m[:] = np.random.default_rng(2).standard_normal((2, TAIL))
    small = gpu.put(np.ones(8, np.float32))
    pieces = [(small.address, 8, 0, 0, small.address, 0), (at, LENGTH - 8, 1, 1, momentum, 0)]
    want, stored = ref.signum(x[:-8], m[:-8])
    parameters = (0.9, 1 - 0.9, 0.0, 0.0)
    data = np.array(pieces).tobytes()
    gpu.kernels.pack_pieces(1, parameters, data, sign, 0, 0, random_of())
    assert np.array_equal(m[:-8], stored)
    # The piece starts one byte late and is 8 shorter: its last byte is the plane's.
    assert np.array_equal(np.unpackbits(plane[1:])[: TAIL - 16], _bits(want)[: TAIL - 16])


def _bits(x):
    return np.unpackbits(np.packbits(x < 0, bitorder="little"))


@pytest.mark.parametrize("masked", [False, True])
def test_majority(tail, masked):
    gpu, array = tail
    nbytes = -(-LENGTH // 8)
    memory = gpu.launcher.sparse(6 * nbytes).reshape(3, 2, nbytes)
    ends = memory[:, :, nbytes - -(-TAIL // 8) :]
    bits = np.random.default_rng(3).random((3, 2, TAIL)) < 0.5
    ends[:] = np.packbits(bits, axis=-1, bitorder="little")
    sign, plane = planes(array)
    gpu.kernels.majority(
        memory.ctypes.data, memory.ctypes.data + nbytes if masked else 0, 2 * nbytes, 3, LENGTH,
        0, 1, sign, 0, policies.TIES.index("random"), random_of(rank=ref.TIE_STREAM),
    )  # fmt: skip
    keys = {"seed": KEYS["seed"], "step": KEYS["step"], "offset": FIRST, "length": TAIL}
    want, _ = ref.majority(ends[:, 0], ends[:, 1] if masked else None, "random", **keys)
    assert np.array_equal(plane, want)


def test_unpack(tail):
    gpu, array = tail
    sign, plane = planes(array)
    at, y = array(np.float64)
    plane[:] = np.packbits(np.arange(TAIL) % 3 == 0, bitorder="little")
    gpu.kernels.unpack(sign, 0, LENGTH, 3, 2.0, at)
    assert np.array_equal(y, np.where(np.arange(TAIL) % 3 == 0, -2.0, 2.0))


@pytest.mark.parametrize("block", [2048, 16384])
def test_error_feedback(tail, block):
    gpu, array = tail
    (at, x), (residual, e) = array(np.float16), array(np.float32)
    sign, plane = planes(array)
    scales, s = array(np.float32, -(-LENGTH // block), 1)
    x[:], e[:] = np.random.default_rng(4).standard_normal((2, TAIL))
    last = (LENGTH % block) or block
    was_x, was_e = x[-last:].copy(), e[-last:].copy()
    gpu.kernels.error_feedback(at, 1, residual, LENGTH, 0.5, block, sign, 0, scales, 0, random_of())
    want = ref.error_feedback(was_x, was_e, 0.5, block)
    assert samples.same(s, want[2])
    assert samples.same(e[-last:], want[3])
    assert np.array_equal(plane[-len(want[0]) :], want[0])
