"""Gradients to sign planes."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from mpisign import policies
from mpisign.backend import arrays, threads
from mpisign.planes import layout

_PIECE = struct.Struct("=6q")
_NO_PARAMETERS = (0.0, 0.0, 0.0, 0.0)


def pack(
    x: Any,
    *,
    zeros: policies.Zeros = policies.DEFAULT_ZEROS,
    nan: policies.Nan = policies.DEFAULT_NAN,
    seed: int = 0,
    step: int = 0,
    rank: int = 0,
    offset: int = 0,
    out: Any = None,
) -> Any:
    """The sign plane of ``x``, 1 = negative, and its mask plane if a coordinate may abstain.

    ``x``: NumPy or CuPy array or torch tensor of float32, float16, bfloat16 or float64, any shape,
    any strides, read in C order without a copy. Returns uint8 of the same framework: (B,), or
    (2, B) under ``zeros="abstain"`` or ``nan="abstain"``; B = ceil(x.size / 8).

    zeros: what 0.0 and -0.0 vote: "positive", "random" (Philox4x32-10 keyed by seed, counter
    (index, step, rank): give both, or zeros vote alike in every step and on every rank) or
    "abstain". nan: "raise" (ValueError with the count) or "abstain".
    ``offset``: coordinates, a multiple of 8, that lie before ``x`` in the tensor or bucket it is
    part of; it moves the random bits only. ``out``: uint8 to write into, no part of ``x``. On a
    GPU, nan="raise" waits for the count of NaNs; ``pack_census`` never waits.

    Raises TypeError, ValueError for arguments that do not fit. Source: Bernstein et al. 2018
    (signSGD); Salmon et al., SC11 (Philox).
    """
    planes, _, nans = _pack(x, zeros, nan, seed, step, rank, offset, out)
    if nan == "raise" and nans:
        raise ValueError(
            f"pack: x must hold no NaN under nan='raise', got {int(nans)} "
            "(nan='abstain' leaves them out of the vote)"
        )
    return planes


def pack_census(
    x: Any,
    *,
    zeros: policies.Zeros = policies.DEFAULT_ZEROS,
    nan: policies.Nan = policies.DEFAULT_NAN,
    seed: int = 0,
    step: int = 0,
    rank: int = 0,
    offset: int = 0,
    out: Any = None,
) -> tuple[Any, Any, Any]:
    """``pack`` that returns (planes, zeros counted, NaNs counted) and never raises on NaN.

    For collectives: a rank that raised alone would leave the others waiting. On a GPU the counts
    are device scalars that nobody has waited for.
    """
    return _pack(x, zeros, nan, seed, step, rank, offset, out)


def _pack(
    x: Any,
    zeros: policies.Zeros,
    nan: policies.Nan,
    seed: int,
    step: int,
    rank: int,
    offset: int,
    out: Any,
) -> tuple[Any, Any, Any]:
    v = arrays.view_floats("pack", "x", x)
    zeros_code = policies.code("pack", "zeros", zeros, policies.ZEROS)
    policies.code("pack", "nan", nan, policies.NAN)
    keys = layout.random("pack", seed, step, rank, offset)
    two = policies.planes_up(zeros, nan) == 2
    out, sign, mask = layout.planes_out("pack", out, (v.length + 7) // 8, two, False, v)
    dtype = arrays.FLOAT_CODES[v.dtype]
    n_threads = threads.for_work(v.length)
    if v.contiguous:
        piece = _PIECE.pack(v.address, v.length, dtype, 0, 0, 0)
        counted = v.kernels.pack_pieces(
            layout.SIGN, _NO_PARAMETERS, piece, sign, mask, zeros_code, keys, n_threads
        )
    else:
        counted = v.kernels.pack(
            v.address, dtype, v.shape, v.strides, sign, mask, zeros_code, keys, n_threads
        )
    return out, counted[0], counted[1]


def pack_many(
    xs: Sequence[Any],
    *,
    zeros: policies.Zeros = policies.DEFAULT_ZEROS,
    nan: policies.Nan = policies.DEFAULT_NAN,
    seed: int = 0,
    step: int = 0,
    rank: int = 0,
    offset: int = 0,
    offsets: Sequence[int] | None = None,
    out: Any = None,
) -> tuple[Any, Any, Any]:
    """Many arrays into the planes of one bucket, by one call (on a GPU: one launch).

    ``xs``: arrays as ``pack`` takes them; those that are not C-contiguous are copied first.
    ``offsets``: the byte of the planes that each starts at, default one after the other, each at a
    byte of its own (as in mpisign.exchange.buckets.Bucket); bytes that no array covers are left alone in
    ``out``. Random bits depend on the place in the planes. Returns (planes (B,) or (2, B), zeros,
    NaNs) and never raises on NaN. The rest as ``pack``.

    Raises TypeError, ValueError for arguments that do not fit.
    """
    function = "pack_many"
    zeros_code = policies.code(function, "zeros", zeros, policies.ZEROS)
    policies.code(function, "nan", nan, policies.NAN)
    keys = layout.random(function, seed, step, rank, offset)
    views = layout.gradients(function, "xs", xs)
    for i, v in enumerate(views):
        layout.same_device(function, f"xs[{i}]", v, views[0])
    starts, nbytes = layout.places(function, views, offsets)
    two = policies.planes_up(zeros, nan) == 2
    planes = layout.planes_out(function, out, nbytes, two, offsets is not None, views[0])
    return layout.pack_views(
        layout.SIGN, _NO_PARAMETERS, views, None, planes, starts, zeros_code, keys
    )
