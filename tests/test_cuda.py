"""The CUDA files, run on the CPU thread by thread, against the NumPy references, bit for bit.

Launched through mpisign/backend/cuda/kernels.py as on a device; only the launcher is another. Every
buffer is as long as the kernel may use, and starts where the test says.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import reference as ref
import samples
from cuda_on_cpu.gpu import DTYPES, KEYS, LENGTHS, ROWS, SPANNING, random_of, with_nans

from mpisign import planes, policies
from mpisign.backend.cuda import kernels, launch, tables
from mpisign.backend.cuda.layouts import scale_bits


def census_of(x):
    x = x.astype(np.float64)
    return int((x == 0).sum()), int(np.isnan(x).sum())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("odd", [0, 1, 3])
def test_pack(gpu, dtype, odd):
    for length in LENGTHS + SPANNING[: 2 if odd else 1]:
        x = with_nans(samples.awkward(length, odd, dtype))
        for zeros in policies.ZEROS:
            sign, mask, census = gpu.pack(x, zeros, zeros == "abstain" or odd == 1, 8 * 19, odd)
            want = ref.pack(x.astype(np.float64), zeros, offset=8 * 19, **KEYS)
            want_mask = want[1]
            assert np.array_equal(sign, want[0] & want_mask), (length, zeros)
            assert mask is None or np.array_equal(mask, want_mask), (length, zeros)
            assert census == census_of(x)
        gpu.launcher.forget()


@pytest.mark.parametrize("dtype", DTYPES)
def test_pack_of_any_strides(gpu, dtype):
    base = samples.awkward(6 * 7 * 10 * 3, 4, dtype).reshape(6, 7, 10, 3)
    whole = gpu.put(base)
    views = [
        base.transpose(3, 1, 0, 2), base[::2, 1:, ::3], base[:, ::-1, :, ::-1], base[:, :, :, 1],
        np.broadcast_to(base[:1, :, :1], (4, 7, 5, 3)), base[2:4], base[:0],
        base[0, 0, 0, 2:3].reshape(()), base.reshape(-1, 3)[:, 1],
    ]  # fmt: skip
    for view in views:
        nbytes = -(-view.size // 8)
        sign, mask = gpu.planes(nbytes), gpu.planes(nbytes)
        start = whole.address + view.__array_interface__["data"][0] - base.ctypes.data
        census = gpu.kernels.pack(
            start, DTYPES.index(dtype), view.shape, view.strides,
            sign.address, mask.address, 2, random_of(),
        )  # fmt: skip
        want = ref.pack(view.astype(np.float64), "abstain", **KEYS)
        assert np.array_equal(sign.array, want[0] & want[1])
        assert np.array_equal(mask.array, want[1])
        assert tuple(census.array) == census_of(np.asarray(view))


def rows_of(n, length, seed, masked):
    """Planes with ties in many places and no padding bits."""
    rng = np.random.default_rng([n, length, seed])
    signs = np.stack([ref.bits_to_plane(rng.random(length) < 0.5) for _ in range(n)])
    masks = np.stack([ref.bits_to_plane(rng.random(length) < 0.7) for _ in range(n)])
    return signs.reshape(n, -1), masks.reshape(n, -1) if masked else None


def check_majority(gpu, n, length, masked, odd=0, weights=None, group=1):
    signs, masks = rows_of(n, length, odd, masked)
    for ties in policies.TIES:
        got = gpu.majority(signs, masks, length, weights, group, ties, 8 * 13, odd)
        keys = {"seed": KEYS["seed"], "step": KEYS["step"], "offset": 8 * 13}
        sign, mask = ref.majority(
            signs, masks, ties, length=length, weights=weights, group=group, **keys
        )
        _, decided = ref.majority(signs, masks, "zero", length=length, weights=weights, group=group)
        assert np.array_equal(got[0], sign), (n, length, ties)
        assert ties != "zero" or np.array_equal(got[1], mask), (n, length, ties)
        assert got[2] == length - int(np.unpackbits(decided).sum())
    gpu.launcher.forget()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("n", ROWS)
def test_majority(gpu, n, masked):
    for length in [7, 129, 4097] if n > 9 else [0, 1, 65, 128, 151, 257, 4096]:
        check_majority(gpu, n, length, masked, odd=length % 5)


@pytest.mark.parametrize("masked", [False, True])
def test_majority_spanning_blocks(gpu, masked):
    for n, odd in [(1, 0), (2, 0), (3, 1), (5, 0), (9, 0), (16, 3), (40, 0)]:
        check_majority(gpu, n, 40003, masked, odd)
    check_majority(gpu, 150, 1003, masked)
    check_majority(gpu, 600, 333, masked, odd=1)
    check_majority(gpu, 8200, 40, masked)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("n", [1, 2, 5, 16, 33])
def test_weighted_majority(gpu, n, masked):
    rng = np.random.default_rng(n)
    for top in (3, 5000 // n, (2**31 - 1) // n):
        weights = rng.integers(0, top, n).astype(np.uint32)
        weights[0] = weights[1:].sum() % (top + 1)
        for length, odd in ((65, 1), (4097, 0)):
            check_majority(gpu, n, length, masked, odd, weights=weights)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("groups, group", [(1, 2), (5, 3), (2, 4), (7, 9), (20, 3), (3, 130)])
def test_grouped_majority(gpu, groups, group, masked):
    for length, odd in ((33, 0), (1027, 1), (2048, 0)):
        check_majority(gpu, groups * group, length, masked, odd, group=group)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("n", [1, 3, 7, 8, 17, 100, 130])
def test_tally(gpu, n, masked, weighted):
    weights = np.random.default_rng(n).integers(0, 3000, n).astype(np.uint32)
    for length, odd in ((1, 0), (129, 1), (4097, 0)):
        signs, masks = rows_of(n, length, odd, masked)
        nbytes, planes = signs.shape[1], 20 if weighted else n.bit_length() + odd
        negatives = gpu.planes(planes, nbytes + odd, odd=odd)
        positives = gpu.planes(planes, nbytes + odd, odd=odd)
        gpu.kernels.tally(
            *gpu.stack(signs, masks, odd)[:2], gpu.stack(signs, masks, odd)[2], n, length,
            gpu.put(weights).address if weighted else 0, planes,
            negatives.address, positives.address if masked else 0, nbytes + odd,
        )  # fmt: skip
        want = ref.tally(signs, masks, weights if weighted else None, length, planes)
        assert np.array_equal(negatives.array[:, :nbytes], want[0])
        assert (negatives.array[:, nbytes:] == 0x5A).all()
        assert not masked or np.array_equal(positives.array[:, :nbytes], want[1])
        gpu.launcher.forget()


@pytest.mark.parametrize("masked", [False, True])
def test_weighted_sum(gpu, masked):
    rng = np.random.default_rng(3)
    for n, length, block, odd in [
        (1, 1, 8, 0),
        (3, 151, 16, 1),
        (9, 4097, 512, 0),
        (17, 257, 0, 3),
    ]:
        signs, masks = rows_of(n, length, 5, masked)
        weights = rng.standard_normal((n, -(-length // block) if block else 1)).astype(np.float32)
        sign, mask, stride = gpu.stack(signs, masks, odd)
        out = gpu.put(np.zeros(length, np.float32), odd)
        gpu.kernels.weighted_sum(
            sign, mask, stride, n, length, gpu.put(weights).address, block or length, 0.3, 1 / n,
            out.address,
        )  # fmt: skip
        want = ref.weighted_sum(signs, masks, weights, block or None, 0.3, 1 / n, length)
        assert samples.same(out.array, want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("masked", [False, True])
def test_unpack_and_what_adds_to_arrays(gpu, dtype, masked):
    code = DTYPES.index(dtype)
    for odd, lengths in ((0, LENGTHS[1:] + SPANNING[1:2]), (1, [1, 8, 33, 4097])):
        for length in lengths:
            (sign, mask), y = rows_of(2, length, 6, True), samples.awkward(length, 8, dtype)
            sign, mask = sign[0], mask[0] if masked else None
            at = (gpu.put(sign, odd).address, gpu.put(mask, odd).address if masked else 0, length)
            out = gpu.put(y, odd)
            gpu.kernels.unpack(*at, code, 0.1, out.address)
            votes = ref.votes_of(sign[None], mask[None] if masked else None, length)[0]
            scale = np.asarray(0.1).astype(dtype)
            want = np.where(votes > 0, scale, np.where(votes < 0, -scale, scale * 0))
            assert samples.same(out.array, want.astype(dtype)), length
            out = gpu.put(y, odd)
            gpu.kernels.unpack_add(*at, code, 0.1, out.address)
            assert samples.same(out.array, ref.unpack_add(sign, mask, y, 0.1)), length
            out = gpu.put(y, odd)
            gpu.kernels.update(*at, code, 0.01, 0.1, out.address)
            with np.errstate(over="ignore", invalid="ignore"):
                assert samples.same(out.array, ref.update(sign, mask, y, 0.01, 0.1)), length
            gpu.launcher.forget()


@pytest.mark.parametrize("dtype", DTYPES)
def test_scales_are_rounded_as_on_the_host(dtype):
    rng = np.random.default_rng(1)
    scales = rng.standard_normal(200) * 10.0 ** rng.integers(-45, 40, 200)
    between = [65519.99, 65520.0, 1e39, 1e300, -1e300, np.inf, np.nan, -0.0, 1e-60]
    between += [1 + 2.0**-k + x for k in (8, 9, 11, 24) for x in (0, 2.0**-45, -(2.0**-45))]
    for scale in [*scales, *between]:
        host = planes.unpack(np.zeros(1, np.uint8), 8, dtype=np.dtype(dtype).name, scale=scale)[:1]
        bits = np.array([scale_bits(float(scale), DTYPES.index(dtype))])
        assert samples.same(
            host, bits.astype(np.uint64).view(np.uint8)[: host.itemsize].view(dtype)
        )


class Memory:
    """In the place of a launcher: gives memory, launches nothing."""

    def __init__(self):
        self.launches = 0

    def scratch(self, nbytes):
        return np.zeros(nbytes, np.uint8), 256

    def launch(self, *_):
        self.launches += 1


def sent(tables_of_stream):
    return [len(content) for content in tables_of_stream._sent]


def test_tables_are_capped_by_number_and_bytes():
    memory = Memory()
    kept = tables.Tables(memory)
    for k in range(100):
        kept.send(np.full(8, k))
    assert len(sent(kept)) == 64
    large = 6 << 20
    for k in range(4):
        kept.send(np.full(large, k, np.uint8))
    assert sent(kept) == [large, large]
    kept.send(np.zeros(20 << 20, np.uint8))
    assert sent(kept) == [20 << 20]  # the last one stays, whatever its size
    launches = memory.launches
    kept.send(np.zeros(20 << 20, np.uint8))
    assert memory.launches == launches
    kept.send(np.zeros(8, np.uint8))
    assert sent(kept) == [8] and kept._nbytes == 8


def test_threads_that_share_tables():
    kept, interval = tables.Tables(Memory()), sys.getswitchinterval()

    def send(thread):
        for k in range(500):
            kept.send(np.full(8, (7 * thread + k) % 90))

    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(send, range(4)))
    finally:
        sys.setswitchinterval(interval)
    assert len(sent(kept)) == 64 and kept._nbytes == sum(sent(kept))


def test_a_per_thread_default_stream_shares_nothing(monkeypatch):
    monkeypatch.setattr(launch, "launcher", lambda *_: Memory())
    monkeypatch.setattr(kernels, "_of_thread", kernels._OfThread())
    mine = kernels._of_stream(0, 2, False)
    assert kernels._of_stream(0, 2, False) is mine
    assert (
        kernels._of_stream(0, 2, True) is not mine and kernels._of_stream(1, 2, False) is not mine
    )
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(kernels._of_stream, 0, 2, False).result() is not mine
