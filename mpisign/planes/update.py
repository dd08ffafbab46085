"""Votes into what is there: added to an array, or as an optimizer's step with weight decay."""

from __future__ import annotations

from typing import Any

from mpisign.backend import arrays, threads
from mpisign.planes import layout


def unpack_add(planes: Any, out: Any, *, scale: float = 1.0) -> Any:
    """``out`` += ``scale`` for +, -= for -; unchanged where the mask plane is 0. Returns ``out``.

    ``planes``: uint8 (B,) or (2, B). ``out``: float32, float16, bfloat16 or float64, C-contiguous,
    any shape of 8 B - 7 to 8 B coordinates. Adds in fp32 and rounds once; float64 in float64.

    Raises TypeError, ValueError for arguments that do not fit.
    """
    p, o, mask = _views("unpack_add", planes, "out", out)
    dtype = arrays.FLOAT_CODES[o.dtype]
    p.kernels.unpack_add(
        p.address, mask, o.length, dtype, float(scale), o.address, threads.for_work(o.length)
    )
    return out


def update(planes: Any, parameter: Any, *, rate: float, weight_decay: float = 0.0) -> Any:
    """``parameter`` -= rate (V + weight_decay parameter), V = +1, -1, or 0 where the mask is 0.

    ``planes``: uint8 (B,) or (2, B), a vote's result. ``parameter``: float32, float16, bfloat16 or
    float64, C-contiguous, any shape of 8 B - 7 to 8 B coordinates; returned. Each operation is
    rounded in fp32, the result once more to the parameter's dtype; float64 in float64.

    Raises TypeError, ValueError for arguments that do not fit. Source: Bernstein et al. 2019,
    signSGD with majority vote, Algorithm 1 (weight decay decoupled, after the vote).
    """
    p, o, mask = _views("update", planes, "parameter", parameter)
    dtype = arrays.FLOAT_CODES[o.dtype]
    p.kernels.update(
        p.address,
        mask,
        o.length,
        dtype,
        float(rate),
        float(weight_decay),
        o.address,
        threads.for_work(o.length),
    )
    return parameter


def _views(
    function: str, planes: Any, argument: str, x: Any
) -> tuple[arrays.View, arrays.View, int]:
    p, mask, nbytes = layout.planes_in(function, planes)
    o = arrays.view_floats(function, argument, x, writable=True)
    layout.same_device(function, argument, o, p)
    if not o.contiguous:
        raise ValueError(f"{function}: {argument} must be C-contiguous, got strides {o.strides}")
    if (o.length + 7) // 8 != nbytes:
        raise ValueError(
            f"{function}: {argument} must have {max(0, 8 * nbytes - 7)} to {8 * nbytes} "
            f"coordinates for planes of {nbytes} bytes, got {o.length}"
        )
    return p, o, mask
