"""Planes to floats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mpisign import arrays, threads
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
    p = arrays.view_bytes("unpack", "planes", planes)
    if len(p.shape) not in (1, 2) or (len(p.shape) == 2 and p.shape[0] != 2):
        raise ValueError(f"unpack: planes must have shape (B,) or (2, B), got {p.shape}")
    nbytes = p.shape[-1]
    if out is None:
        out = _new(p, 8 * nbytes if shape is None else shape, dtype)
    o = arrays.view_floats("unpack", "out", out, writable=True)
    layout.same_device("unpack", "out", o, p)
    if not o.contiguous:
        raise ValueError(f"unpack: out must be C-contiguous, got strides {o.strides}")
    if (o.length + 7) // 8 != nbytes:
        raise ValueError(
            f"unpack: shape must have {max(0, 8 * nbytes - 7)} to {8 * nbytes} coordinates "
            f"for planes of {nbytes} bytes, got {o.length}"
        )
    p.kernels.unpack(
        p.address,
        p.address + p.strides[0] if len(p.shape) == 2 else 0,
        o.length,
        arrays.FLOAT_CODES[o.dtype],
        float(scale),
        o.address,
        threads.for_work(o.length),
    )
    return out


def _new(p: arrays.View, shape: int | Sequence[int], dtype: Any) -> Any:
    dims = (int(shape),) if isinstance(shape, (int, np.integer)) else tuple(int(n) for n in shape)
    if min(dims, default=0) < 0:
        raise ValueError(f"unpack: shape must not be negative, got {shape}")
    return arrays.empty(dims, arrays.float_name("unpack", "dtype", dtype), like=p)
