"""The machinery itself: each mistake in tests/cuda_on_cpu/faulty.cu is found, and where it is."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from cuda_on_cpu.fibres import HERE, FibreLauncher, build

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@pytest.fixture(scope="module")
def faulty(request):
    return build(request.config.cache.mkdir("cuda_on_cpu"), [HERE / "faulty.cu"])


@pytest.fixture
def launcher(faulty):
    made = FibreLauncher(faulty)
    yield made
    made.forget()


def start(launcher, name, *args, grid=1):
    launcher.launch("faulty", name, grid, 256, 0, args)


def floats(launcher, n):
    return launcher.buffer(np.zeros(n, np.float32)).address


def test_a_load_past_the_end(launcher):
    x, out = floats(launcher, 300), floats(launcher, 1)
    with pytest.raises(
        AssertionError, match="past_the_end, block 1, thread 44: load of 4 bytes .*"
    ):
        start(launcher, "past_the_end", x, 300, out, grid=2)


def test_a_load_before_the_start(launcher):
    x, out = floats(launcher, 256), floats(launcher, 256)
    with pytest.raises(AssertionError, match="thread 0: load of 4 bytes .* byte -4 of the nearest"):
        start(launcher, "before_the_start", x, out)


@pytest.mark.parametrize(
    "name, what",
    [
        ("misaligned", "thread 0: undefined behaviour .type_mismatch_v1. at faulty.cu:1"),
        ("shared_past_the_end", "thread 248: undefined behaviour .out_of_bounds. at faulty.cu:2"),
        ("barrier_for_some", "block 0: 100 threads wait at a barrier, 0 in .*, 156 have left"),
        ("exchange_for_some", "block 0: 0 threads wait at a barrier, 128 in .*, 128 have left"),
    ],
)
def test_other_mistakes(launcher, name, what):
    args = (floats(launcher, 256),) * (2 if name == "misaligned" else 1)
    with pytest.raises(AssertionError, match=what):
        start(launcher, name, *args)


def test_a_shift_too_far(launcher):
    start(launcher, "shift_too_far", floats(launcher, 256), 31)
    with pytest.raises(AssertionError, match="shift_out_of_bounds. at faulty.cu:"):
        start(launcher, "shift_too_far", floats(launcher, 256), 32)


def test_a_missing_barrier_shows_when_threads_run_backwards(launcher):
    right = np.repeat(np.arange(1, 4, dtype=np.uint32), 256)
    for backwards in (False, True):
        out = launcher.buffer(np.zeros(3 * 256, np.uint32))
        start(launcher, "no_barrier", out.address, grid=3)
        assert np.array_equal(out.array, right) is not backwards


def test_arguments_are_counted_and_measured(launcher):
    out = floats(launcher, 256)
    with pytest.raises(AssertionError, match="wrong number of arguments"):
        start(launcher, "misaligned", out)
    with pytest.raises(AssertionError, match="another size"):
        start(launcher, "misaligned", out, np.float32(1))
    with pytest.raises(AssertionError, match="no such kernel"):
        start(launcher, "none")
