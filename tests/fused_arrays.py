"""What the tests of the fused kernels share: dtypes, awkward arrays, every instruction set."""

from __future__ import annotations

import numpy as np
import pytest
import samples
from hypothesis import strategies as st

from mpisign import _kernels

ml_dtypes = pytest.importorskip("ml_dtypes")

BF16 = ml_dtypes.bfloat16
DTYPES = [np.float32, np.float16, BF16, np.float64]
KEYS = {"seed": 2**40 + 7, "step": 2**33 + 11, "rank": 3}
ZEROS = ["positive", "random", "abstain"]


#: For properties: a test's first line is ``_kernels.use_isa(name)``, ``isa_restored`` its last.
any_isa = st.sampled_from(_kernels.isas())


@pytest.fixture(autouse=True)
def isa_restored():
    before = _kernels.isa()
    yield
    _kernels.use_isa(before)


@pytest.fixture(params=_kernels.isas())
def isa(request):
    """Each instruction set of this processor in turn; the one in use comes back."""
    before = _kernels.isa()
    _kernels.use_isa(request.param)
    yield request.param
    _kernels.use_isa(before)


def awkward(length, seed, dtype=np.float32, nans=True):
    """As references.awkward, with NaNs of both signs among them."""
    x = samples.awkward(length, seed, dtype)
    if nans:
        x[::11] = np.nan
        x[5::23] = -x[::11][: x[5::23].size]
    return x


def at_odd_place(x, seed):
    """The same array at an address that is a multiple of nothing but its item's alignment."""
    room = np.zeros(x.size + 5, dtype=x.dtype)
    view = room[seed % 4 + 1 :][: x.size]
    view[:] = x
    return view


def untouched(planes, spans):
    """True if planes filled with 0xAA before still have it wherever no span lies."""
    covered = np.zeros(planes.shape[-1], dtype=bool)
    for span in spans:
        covered[span] = True
    return bool((planes[..., ~covered] == 0xAA).all())
