"""On a CUDA device, through the public functions: torch and CuPy arrays, streams, sizes, waiting.

Where there is none, all are skipped with the reason. That each kernel's bits are right is what
test_cuda.py and test_cuda_fused.py show, which run on a device under MPISIGN_TEST_CUDA=1
(scripts/test-gpu does both).
"""

from __future__ import annotations

import statistics
import time

import numpy as np
import pytest
import samples
from cuda_device import missing

from mpisign import planes

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]

KEYS = {"seed": 7, "step": 3}


def to_torch(x):
    torch = pytest.importorskip("torch")
    return torch.from_numpy(np.array(x)).cuda()


def to_cupy(x):
    import cupy

    return cupy.asarray(x)


def back(x):
    return x.cpu().numpy() if hasattr(x, "cpu") else x.get()


@pytest.fixture(params=[to_torch, to_cupy], ids=["torch", "cupy"])
def on_gpu(request):
    return request.param


def same_as_host(on_gpu, function, *arrays, writes=(), **options):
    """Runs a function of mpisign.planes on both; compares results and what it wrote to."""
    here = [np.array(x) for x in arrays]
    there = [on_gpu(x) for x in arrays]
    mine, theirs = function(*here, **options), function(*there, **options)
    mine = mine if isinstance(mine, tuple) else (mine,)
    theirs = theirs if isinstance(theirs, tuple) else (theirs,)
    for a, b in zip(mine, theirs, strict=True):
        if isinstance(a, int):
            assert a == int(b)
        else:
            assert type(b) is type(there[0])
            assert samples.same(np.asarray(a), back(b))
    for k in writes:
        assert samples.same(here[k], back(there[k]))


@pytest.mark.parametrize("length", [1, 33, 4097, 1_000_003])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_pack_and_unpack(on_gpu, length, dtype):
    x = samples.awkward(length, 1, dtype)
    for zeros in ("positive", "random", "abstain"):
        same_as_host(on_gpu, planes.pack_census, x, zeros=zeros, **KEYS)
    plane = planes.pack(x, zeros="abstain")
    same_as_host(on_gpu, planes.unpack, plane, shape=length, dtype="float32", scale=0.3)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 16, 33])
@pytest.mark.parametrize("ties", ["positive", "random", "zero"])
def test_majority(on_gpu, n, ties):
    rng = np.random.default_rng(n)
    for nbytes in (1, 33, 125_001):
        stack = rng.integers(0, 256, (n, nbytes), dtype=np.uint8)
        same_as_host(on_gpu, planes.majority_census, stack, ties=ties, **KEYS)
        both = rng.integers(0, 256, (n, 2, nbytes), dtype=np.uint8)
        same_as_host(on_gpu, planes.majority_census, both, ties=ties, **KEYS)
        same_as_host(on_gpu, planes.majority, stack, ties=ties, weights=list(range(1, n + 1)))


def test_fused(on_gpu):
    x, m = samples.awkward(100_003, 1), samples.awkward(100_003, 2)
    same_as_host(on_gpu, planes.pack_signum, x, m, writes=[1], **KEYS)
    same_as_host(on_gpu, planes.pack_lion, x, m, writes=[1], **KEYS)
    same_as_host(on_gpu, planes.pack_sparsign, x, budget=0.4, **KEYS)
    for block in (256, 4096, 32768, 65536, None):
        same_as_host(on_gpu, planes.pack_error_feedback, x, m, writes=[1], block=block, **KEYS)


def test_bfloat16_of_torch():
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(samples.awkward(10_001, 3)).to(torch.bfloat16)
    assert torch.equal(planes.pack(x), planes.pack(x.cuda()).cpu())


def test_views_at_odd_places(on_gpu):
    x, device = samples.awkward(5000, 4), on_gpu(samples.awkward(5000, 4))
    for view in (np.s_[1:], np.s_[3:-7], np.s_[::3]):
        assert np.array_equal(back(planes.pack(device[view])), planes.pack(x[view]))


def test_the_current_stream_of_torch():
    torch = pytest.importorskip("torch")
    x = torch.zeros(1 << 20, device="cuda")
    planes.pack_census(x)  # compiled
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)
        x.fill_(-1.0)  # behind the sleep: a pack on another stream would not see it
        plane = planes.pack_census(x)[0]
        assert not stream.query()
    stream.synchronize()
    assert bool((plane == 255).all())


def test_the_current_stream_of_cupy():
    import cupy

    x = cupy.zeros(1 << 28, dtype=cupy.float32)
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:  # kernels compiled, memory there: else the fills are done before a pack is queued
        x.fill(0.0)
        planes.pack_census(x)
    cupy.cuda.Device().synchronize()
    with stream:
        for _ in range(200):
            x.fill(1.0)
        x.fill(-1.0)  # behind 200 GiB: a pack on another stream would not see it
        plane = planes.pack_census(x)[0]
        assert not stream.done
    stream.synchronize()
    assert bool((plane == 255).all())


def test_nothing_waits_for_the_device():
    torch = pytest.importorskip("torch")
    x, m = torch.randn(1 << 20, device="cuda"), torch.zeros(1 << 20, device="cuda")
    planes.pack_signum(x, m)  # compiled, tables sent
    stack = torch.randint(0, 256, (8, 1 << 17), dtype=torch.uint8, device="cuda")
    planes.majority_census(stack)
    planes.pack_error_feedback(x, m)
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(500_000_000)
        done = torch.cuda.Event()
        planes.pack_census(x)
        planes.pack_signum(x, m)
        planes.majority_census(stack)
        planes.unpack(stack[0], 1 << 20)
        planes.pack_error_feedback(x, m)
        done.record()
        assert not done.query()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    torch.cuda.synchronize()


def test_over_two_to_the_31_coordinates():
    torch = pytest.importorskip("torch")
    length = 2**31 + 4099
    if torch.cuda.mem_get_info()[0] < 16 << 30:
        pytest.skip("needs 16 GB of device memory")
    x = torch.ones(length, dtype=torch.float16, device="cuda")
    for at in (0, 2**31 - 1, 2**31, 2**31 + 8, length - 1):
        x[at] = -1
    plane = planes.pack(x)
    expected = torch.zeros_like(plane)
    for at in (0, 2**31 - 1, 2**31, 2**31 + 8, length - 1):
        expected[at // 8] |= 1 << at % 8
    assert torch.equal(plane, expected)
    assert torch.equal(planes.majority(torch.stack([plane] * 3), length=length), expected)
    assert torch.equal(planes.unpack(plane, length, dtype="float16"), x)


def test_launch_overhead(record_property, capsys):
    torch = pytest.importorskip("torch")
    x = torch.randn(1000, device="cuda")
    out = planes.pack_census(x)[0]
    stack = out.repeat(8, 1)
    calls = {
        "pack": lambda: planes.pack_census(x, out=out),
        "majority": lambda: planes.majority_census(stack, out=out),
        "unpack": lambda: planes.unpack(out, out=x),
    }
    for name, call in calls.items():
        times = []
        for _ in range(300):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        torch.cuda.synchronize()
        median = 1e6 * statistics.median(times)
        record_property(name, median)
        with capsys.disabled():
            print(f"\n{name}: {median:.1f} us of Python a call (goal: 15)", end="")
        assert median < 60
