"""Error feedback: scaled signs, whose error is kept for the next step."""

from __future__ import annotations

from typing import Any, Unpack

from mpisign.backend import arrays, threads
from mpisign.planes import keys, layout


def pack_error_feedback(
    grad: Any,
    residual: Any,
    *,
    rate: float = 1.0,
    block: int | None = None,
    out: Any = None,
    scales: Any = None,
    **policy: Unpack[keys.Policy],
) -> tuple[Any, Any, Any, Any]:
    """Packs D = mean|q| sign(q) of q = rate g + e, a mean for each block, and keeps e = q - D.

    fp32, each operation rounded; the mean is a sum by halves of 256, with the same bits on every
    device. One pass over memory for blocks up to 65,536 coordinates, else two.

    Args:
        grad: g, one float32, float16, bfloat16 or float64 array, any shape; copied if not
            C-contiguous.
        residual: e, float32, C-contiguous, as many coordinates; updated in place. Coordinates that
            do not vote keep all of q.
        rate: Learning rate. The residual contains it: rescale e when it changes.
        block: Coordinates a scale, a multiple of 256, default all of them.
        out: uint8 planes to write to.
        scales: float32 (blocks,) to write to.
        **policy: ``zeros``, ``nan``, ``seed``, ``step``, ``rank``, ``offset`` of ``pack``.

    Returns:
        (planes as ``pack``, scales float32 (ceil(size / block),), zeros, values not finite). Such a
        value keeps its residual, does not vote, counts 0 in the mean, and never raises. A block
        whose sum overflows consists of such values; its scale is 0.

    Raises:
        TypeError, ValueError: An argument does not fit.

    Source: Karimireddy et al. 2019, Error feedback fixes SignSGD, Algorithm 1.

    Example:
        >>> import numpy as np
        >>> from mpisign import planes
        >>> e = np.zeros(2, dtype=np.float32)
        >>> planes.pack_error_feedback(np.array([-1.0, 3.0]), e)[:2], e
        ((array([1], dtype=uint8), array([2.], dtype=float32)), array([1., 1.], dtype=float32))
    """
    function = "pack_error_feedback"
    zeros, two, key = keys.policy(function, **policy)
    rate = keys.fp32(function, "rate", rate, -keys.FLOAT32_MAX, keys.FLOAT32_MAX)
    g = layout.gradient(function, "grad", grad)
    e = layout.output(function, "residual", residual, g, ("float32",))
    length = g.length
    if block is None:
        block = max(1, length)
    if block < 1 or (block % 256 and block < length):
        raise ValueError(f"{function}: block must be a positive multiple of 256, got {block}")
    block = min(block, max(1, length))
    shape = (-(-length // block),)
    if scales is None:
        scales = arrays.empty(shape, "float32", like=g)
    s = arrays.view_floats(function, "scales", scales, writable=True)
    layout.same_device(function, "scales", s, g)
    if s.shape != shape or s.dtype != "float32" or not s.contiguous:
        raise ValueError(
            f"{function}: scales must be C-contiguous float32 {shape}, got {s.dtype} {s.shape}"
        )
    out, *planes = layout.planes_out(function, out, (length + 7) // 8, two, False, g)
    arguments = (g.address, arrays.FLOAT_CODES[g.dtype], e.address, length, rate, block, *planes)
    counted = g.kernels.error_feedback(*arguments, s.address, zeros, key, threads.for_work(length))
    return out, scales, counted[0], counted[1]
