"""More than 2^31 coordinates: 64-bit indices, from Python to the last byte."""

from __future__ import annotations

import numpy as np
import psutil
import pytest

import mpisign
from mpisign import planes

LENGTH = (1 << 31) + 1003


@pytest.mark.slow
@pytest.mark.skipif(
    psutil.virtual_memory().available < 8 << 30, reason="needs 8 GiB of free memory"
)
def test_more_than_two_to_the_31_coordinates():
    x = np.zeros(LENGTH, dtype=np.float16)  # pages that nobody writes to take no memory
    negatives = np.array([0, 1 << 20, (1 << 31) - 1, 1 << 31, LENGTH - 1])
    x[negatives] = -1
    plane, zeros, nans = planes.pack_census(x, zeros="positive")
    assert (zeros, nans) == (LENGTH - len(negatives), 0)
    assert where_set(plane).tolist() == negatives.tolist()

    stack = np.stack([plane, plane, np.zeros_like(plane)])
    result, tied = planes.majority_census(stack[:2], length=LENGTH, ties="zero")
    assert tied == 0
    assert where_set(result[0]).tolist() == negatives.tolist()
    assert where_set(mpisign.majority(stack, length=LENGTH)).tolist() == negatives.tolist()
    del stack, result

    mpisign.unpack(plane, out=x)
    assert (x[negatives] == -1).all() and (x[negatives[1:] - 1][[0, 1, 3]] == 1).all()
    assert np.count_nonzero(x[-2000:] == 1) == 1997
    planes.update(plane, x, rate=1.0)
    assert not x[-2000:].any() and not x[:2000].any()


def where_set(plane):
    """The coordinates whose bit is set."""
    where = np.flatnonzero(plane)
    bits = np.unpackbits(plane[where], bitorder="little").reshape(-1, 8)
    which, bit = bits.nonzero()
    return 8 * where[which] + bit
