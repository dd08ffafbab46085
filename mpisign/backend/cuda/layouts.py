"""Arguments of kernels: layouts of strided arrays, bit patterns of scales. Plain NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np

#: The dtypes' names in those of kernels.
DTYPES = ("fp32", "fp16", "bf16", "fp64")
#: Bytes of the dtypes, in the order of arrays.FLOATS.
ITEM_SIZES = (4, 2, 2, 8)

_MAX_DIMS = 32
_LAYOUT = np.dtype(
    [("ndim", np.int64), ("shape", np.int64, (_MAX_DIMS,)), ("strides", np.int64, (_MAX_DIMS,))]
)


def merged(shape: tuple[int, ...], strides: tuple[int, ...]) -> list[tuple[int, int]]:
    """(extent, stride in bytes) with neighbours that are one run in memory merged."""
    dims: list[tuple[int, int]] = []
    for extent, stride in zip(shape, strides, strict=True):
        if extent == 1:
            continue
        if dims and dims[-1][1] == extent * stride:
            dims[-1] = (dims[-1][0] * extent, stride)
        else:
            dims.append((extent, stride))
    return dims


def layout_of(dims: list[tuple[int, int]]) -> np.ndarray[Any, Any]:
    """The structure Layout of kernels/pack.cu."""
    layout = np.zeros((), dtype=_LAYOUT)
    layout["ndim"] = len(dims)
    layout["shape"][: len(dims)] = [extent for extent, _ in dims]
    layout["strides"][: len(dims)] = [stride for _, stride in dims]
    return layout


def scale_bits(scale: float, dtype: int) -> int:
    """The bit pattern of ``scale`` in a dtype, rounded once, to nearest, ties to even."""
    if dtype == 3:
        return int(np.float64(scale).view(np.int64))
    with np.errstate(over="ignore", under="ignore"):
        if dtype == 1:
            return int(np.float16(scale).view(np.uint16))
        near = np.float32(scale)
    bits = int(near.view(np.uint32))
    if dtype == 0:
        return bits
    if scale != scale:
        return 0x7FC0
    # fp32 in between rounds to odd: truncated, with the last bit set if the result is inexact.
    if float(near) != scale:
        bits = (bits - (abs(float(near)) > abs(scale))) | 1
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16 & 0xFFFF
