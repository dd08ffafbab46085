"""Planes to floats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mpisign.backend import arrays, threads
from mpisign.planes import layout


def unpack(
    planes: Any,
    shape: int | Sequence[int] | None = None,
    *,
    dtype: Any = "float32",
    scale: float = 1.0,
    out: Any = None,
) -> Any:
    """Planes to floats: ``scale`` for +, ``-scale`` for -, +0.0 where the mask plane is 0.

    ``planes``: uint8 (B,) or (2, B). ``shape``: of the result, default (8 B,). Returns an array of
    the same framework and of ``dtype`` (a name, a NumPy or a torch dtype of float32, float16,
    bfloat16, float64), or ``out``, whose shape and dtype then hold; it must be C-contiguous.

    Raises TypeError, ValueError for arguments that do not fit.
    """
    p, mask, nbytes = layout.planes_in("unpack", planes)
    if out is None:
        name = "float32" if dtype == "float32" else arrays.float_name("unpack", "dtype", dtype)
        dims = _dims(8 * nbytes if shape is None else shape)
        out, length = arrays.empty(dims, name, like=p), math.prod(dims)
        start = arrays.address(out)
    else:
        o = arrays.view_floats("unpack", "out", out, writable=True)
        layout.same_device("unpack", "out", o, p)
        if not o.contiguous:
            raise ValueError(f"unpack: out must be C-contiguous, got strides {o.strides}")
        name, length, start = o.dtype, o.length, o.address
    if (length + 7) // 8 != nbytes:
        raise ValueError(
            f"unpack: shape must have {max(0, 8 * nbytes - 7)} to {8 * nbytes} coordinates "
            f"for planes of {nbytes} bytes, got {length}"
        )
    p.kernels.unpack(
        p.address,
        mask,
        length,
        arrays.FLOAT_CODES[name],
        float(scale),
        start,
        threads.for_work(length),
    )
    return out


def _dims(shape: int | Sequence[int]) -> tuple[int, ...]:
    dims = (int(shape),) if isinstance(shape, (int, np.integer)) else tuple(int(n) for n in shape)
    if min(dims, default=0) < 0:
        raise ValueError(f"unpack: shape must not be negative, got {shape}")
    return dims
