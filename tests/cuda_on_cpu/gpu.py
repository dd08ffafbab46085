"""NumPy arrays in and out of mpisign/backend/cuda/kernels.py, and what the tests run over."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import reference as ref

from mpisign import policies
from mpisign.backend.cuda.kernels import Kernels

DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16, np.float64]
LENGTHS = [0, 1, 7, 8, 31, 32, 33, 63, 64, 65, *range(127, 152, 6), 255, 256, 257, 4095, 4096, 4097]
SPANNING = [8191, 16389, 33000]  # several CUDA blocks
KEYS = {"seed": 2**63 + 2**40 + 7, "step": 11, "rank": 3}
ROWS = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 100]


def random_of(offset=0, rank=KEYS["rank"]):
    return (KEYS["seed"], KEYS["step"], rank, offset // 8)


def with_nans(x):
    x = x.copy()
    x[5::11] = np.nan
    x[6::11] = -x[5::11][: x[6::11].size]
    return x


class Gpu:
    """NumPy in, NumPy out. ``odd``: items by which inputs are misaligned; bytes, for planes."""

    def __init__(self, launcher):
        self.launcher = launcher
        self.kernels = Kernels(launcher)

    def put(self, x, odd=0):
        return self.launcher.buffer(np.asarray(x), odd * np.asarray(x).itemsize)

    def planes(self, *shape, odd=0):
        return self.put(np.full(shape, 0x5A, dtype=np.uint8), odd)

    def pack(self, x, zeros, mask=True, offset=0, odd=0):
        data = self.put(x, odd)
        sign, masks = self.planes(-(-x.size // 8), odd=odd), self.planes(-(-x.size // 8), odd=odd)
        code = policies.ZEROS.index(zeros)
        census = self.kernels.pack(
            data.address, DTYPES.index(x.dtype.type), x.shape, x.strides,
            sign.address, masks.address if mask else 0, code, random_of(offset),
        )  # fmt: skip
        return sign.array, masks.array if mask else None, tuple(census.array)

    def stack(self, stack, mask, odd):
        """(sign address, mask address, row stride): rows at an odd stride if ``odd``."""
        rows, nbytes = stack.shape
        stride = nbytes + odd if odd else -(-nbytes // 16) * 16
        planes = []
        for plane in (stack, mask):
            if plane is None:
                planes.append(0)
                continue
            whole = np.full((rows, stride), 0xA5, dtype=np.uint8)
            whole[:, :nbytes] = plane
            # The last row ends where its planes end: what lies behind is nobody's.
            planes.append(self.put(whole.reshape(-1)[: (rows - 1) * stride + nbytes], odd).address)
        return planes[0], planes[1], stride

    def majority(self, stack, mask, length, weights=None, group=1, ties="zero", offset=0, odd=0):
        nbytes = -(-length // 8)
        out, out_mask = self.planes(nbytes, odd=odd), self.planes(nbytes, odd=odd)
        sign, masks, stride = self.stack(stack, mask, odd)
        tied = self.kernels.majority(
            sign, masks, stride, len(stack), length,
            0 if weights is None else self.put(weights).address, group,
            out.address, out_mask.address if ties == "zero" else 0,
            policies.TIES.index(ties), random_of(offset, ref.TIE_STREAM),
        )  # fmt: skip
        return out.array, out_mask.array if ties == "zero" else None, int(tied.array[0])

    def group_distances(self, stack, mask, length, group, odd=0):
        planes = self.stack(stack, mask, odd)
        return self.kernels.group_distances(*planes, len(stack), length, group).array
