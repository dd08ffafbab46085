"""Error feedback: scaled signs, and what they leave out kept for the next step."""

from __future__ import annotations

from typing import Any

from mpisign import policies
from mpisign.backend import arrays, threads
from mpisign.planes import layout

_FLOAT32_MAX = 3.4028234663852886e38


def pack_error_feedback(
    grad: Any,
    residual: Any,
    *,
    rate: float = 1.0,
    block: int | None = None,
    zeros: policies.Zeros = policies.DEFAULT_ZEROS,
    nan: policies.Nan = policies.DEFAULT_NAN,
    seed: int = 0,
    step: int = 0,
    rank: int = 0,
    offset: int = 0,
    out: Any = None,
    scales: Any = None,
) -> tuple[Any, Any, Any, Any]:
    """q = rate g + e; D = mean|q| sign(q) for each block; e = q - D in place. Sends D.

    ``grad``: float32, float16, bfloat16 or float64, any shape; copied if not C-contiguous.
    ``residual``: e, float32, as many coordinates, C-contiguous. ``block``: coordinates of a scale,
    a multiple of 256, default all. Returns (planes as ``pack`` does, scales float32 (blocks,),
    zeros, values that were not finite). Such a value keeps its residual, does not vote and counts
    0 in the mean; never raises for it. A block whose sum overflows is all such values, its scale 0.
    A coordinate that does not vote keeps q whole.

    fp32, each operation rounded; the mean is a sum by halves of 256 (the same bits on every device)
    over the block's coordinates. One pass over memory up to blocks of 65,536, else two. Policies,
    seed, step, rank, offset, out: see ``pack``. Raises TypeError, ValueError for arguments that do
    not fit. Source: Karimireddy et al. 2019, Error feedback fixes SignSGD, Algorithm 1; the rate
    sits in the memory: rescale e when it changes.
    """
    function = "pack_error_feedback"
    zeros_code = policies.code(function, "zeros", zeros, policies.ZEROS)
    policies.code(function, "nan", nan, policies.NAN)
    rate = layout.fp32(function, "rate", rate, -_FLOAT32_MAX, _FLOAT32_MAX)
    keys = layout.random(function, seed, step, rank, offset)
    g = layout.gradient(function, "grad", grad)
    e = layout.in_place(function, "residual", residual, g, ("float32",))
    if block is None:
        block = max(1, g.length)
    if block < 1 or (block % 256 and block < g.length):
        raise ValueError(f"{function}: block must be a positive multiple of 256, got {block}")
    block = min(block, max(1, g.length))
    shape = (-(-g.length // block),)
    if scales is None:
        scales = arrays.empty(shape, "float32", like=g)
    s = arrays.view_floats(function, "scales", scales, writable=True)
    layout.same_device(function, "scales", s, g)
    if s.shape != shape or s.dtype != "float32" or not s.contiguous:
        raise ValueError(
            f"{function}: scales must be C-contiguous float32 {shape}, got {s.dtype} {s.shape}"
        )
    two = policies.planes_up(zeros, nan) == 2
    planes, sign, mask = layout.planes_out(function, out, (g.length + 7) // 8, two, False, g)
    counted = g.kernels.error_feedback(
        g.address,
        arrays.FLOAT_CODES[g.dtype],
        e.address,
        g.length,
        rate,
        block,
        sign,
        mask,
        s.address,
        zeros_code,
        keys,
        threads.for_work(g.length),
    )
    return planes, scales, counted[0], counted[1]
