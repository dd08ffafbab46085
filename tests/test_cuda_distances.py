"""kernels/distances.cu thread by thread on the CPU (or a device), against the NumPy reference."""

from __future__ import annotations

import numpy as np
import pytest
import reference as ref
from cuda_on_cpu.gpu import LENGTHS


def ballots(n, length, masked):
    """Planes whose padding bits are anything."""
    rng = np.random.default_rng([n, length])
    signs = rng.integers(0, 256, (n, -(-length // 8)), dtype=np.uint8)
    return signs, rng.integers(0, 256, signs.shape, dtype=np.uint8) if masked else None


def check(gpu, n, group, length, masked, odd=0):
    signs, masks = ballots(n, length, masked)
    result = gpu.group_distances(signs, masks, length, group, odd)
    wanted = ref.group_distances(signs, masks, group, length)
    assert np.array_equal(result, wanted), (n, group, length, odd)
    gpu.launcher.forget()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("odd", [0, 1, 3])
def test_lengths(gpu, masked, odd):
    for length in LENGTHS:
        for n, group in ((9, 3), (4, 2)) if length > 300 else ((9, 3), (4, 4), (2, 2), (45, 15)):
            check(gpu, n, group, length, masked, odd)


@pytest.mark.parametrize("masked", [False, True])
def test_groups(gpu, masked):
    for group in (1, 2, 3, 4, 5, 7, 8, 15, 16, 45, 64, 130, 257):
        for groups in (1, 3):
            check(gpu, group * groups, group, 1029, masked)
    # Blocks that end within a row, and rows of which a block hands over 256 at a time.
    check(gpu, 300, 3, 100, masked)
    check(gpu, 6, 3, 256 * 16 * 8 + 77, masked)
    check(gpu, 32, 16, 256 * 4 * 8 + 9, masked, odd=1)


def test_no_counter_is_that_wide(gpu):
    with pytest.raises(ValueError, match="group_distances: groups must be at most 8191"):
        gpu.kernels.group_distances(0, 0, 1, 8192, 8, 8192)
