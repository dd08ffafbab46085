"""Arrays of floats to sign planes."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Unpack

from mpisign import _kernels, policies
from mpisign.backend import arrays, threads
from mpisign.planes import keys, layout

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
    """Packs the signs of an array into a plane, 1 = negative, and a mask plane if any may abstain.

    Args:
        x: NumPy or CuPy array or torch tensor of float32, float16, bfloat16 or float64, of any
            shape and strides; read in C order, not copied.
        zeros: What 0.0 and -0.0 vote: "positive", "random" or "abstain".
        nan: "raise", or "abstain" to leave NaN out of the vote.
        seed: Key of the random bits, below 2**64 (Philox4x32-10, counter (index, step, rank)).
        step: Number of the vote, below 2**64. Without it zeros vote alike in every step.
        rank: This rank, below 2**31. Without it zeros vote alike on every rank.
        offset: Coordinates before ``x`` in its tensor or bucket, a multiple of 8; moves the
            random bits only.
        out: uint8 array to write to, which shares no memory with ``x``.

    Returns:
        uint8 of the same framework and device: shape (B,), B = ceil(x.size / 8), or (2, B) under
        ``zeros="abstain"`` or ``nan="abstain"``. ``out`` if it was given.

    Raises:
        TypeError: An array has another type, dtype or device.
        ValueError: A policy, key or shape does not fit, or ``x`` holds NaN under ``nan="raise"``
            (a GPU is waited for; ``pack_census`` never waits).

    Source: Bernstein et al. 2018, signSGD; Salmon et al. 2011, Parallel random numbers (Philox).

    Example:
        >>> import numpy as np
        >>> from mpisign import planes
        >>> planes.pack(np.array([1.0, -2.0, -0.5], dtype=np.float32))
        array([6], dtype=uint8)
    """
    planes, _, nans = pack_census(
        x, zeros=zeros, nan=nan, seed=seed, step=step, rank=rank, offset=offset, out=out
    )
    if nan == "raise" and nans:
        raise ValueError(
            f"pack: x must hold no NaN under nan='raise', got {int(nans)} "
            "(nan='abstain' leaves them out of the vote)"
        )
    return planes


def pack_census(x: Any, *, out: Any = None, **policy: Unpack[keys.Policy]) -> tuple[Any, Any, Any]:
    """Packs as ``pack`` does, counts zeros and NaN, and never raises on NaN.

    For collectives: a rank that raised alone would leave the others waiting.

    Args:
        x: Array as ``pack`` takes it.
        out: uint8 array to write to.
        **policy: ``zeros``, ``nan``, ``seed``, ``step``, ``rank``, ``offset`` of ``pack``.

    Returns:
        (planes, zeros, NaNs). The counts are ints; on a GPU device scalars, not waited for.

    Raises:
        TypeError, ValueError: As ``pack``, but for NaN.

    Example:
        >>> import numpy as np
        >>> from mpisign import planes
        >>> planes.pack_census(np.array([0.0, -1.0, np.nan]), nan="abstain", zeros="positive")
        (array([[2],
               [3]], dtype=uint8), 1, 1)
    """
    v = arrays.view_floats("pack", "x", x)
    code, two, key = keys.policy("pack", **policy)
    out, sign, mask = layout.planes_out("pack", out, (v.length + 7) // 8, two, False, v)
    counted = pack_view(v, sign, mask, code, key)
    return out, counted[0], counted[1]


def pack_view(v: arrays.View, sign: int, mask: int, zeros: int, key: keys.Random) -> Any:
    """Packs one array of any strides: (zeros, NaNs). Checks nothing.

    ``sign``, ``mask``: addresses of planes, ``mask`` 0 for none. ``zeros``, ``key``: from
    ``keys.policy``.
    """
    dtype, length = arrays.FLOAT_CODES[v.dtype], v.length
    n_threads = 1 if length < threads.WORTH_A_THREAD else threads.count()
    kernels = _kernels if v.device == "cpu" else v.kernels
    if not v.contiguous:
        return kernels.pack(v.address, dtype, v.shape, v.strides, sign, mask, zeros, key, n_threads)
    piece = _PIECE.pack(v.address, v.length, dtype, 0, 0, 0)
    return kernels.pack_pieces(
        layout.SIGN, _NO_PARAMETERS, piece, sign, mask, zeros, key, n_threads
    )


def pack_many(
    xs: Sequence[Any],
    *,
    offsets: Sequence[int] | None = None,
    out: Any = None,
    **policy: Unpack[keys.Policy],
) -> tuple[Any, Any, Any]:
    """Packs many arrays into the planes of one bucket, in one kernel call.

    Args:
        xs: Arrays as ``pack`` takes them, on one device; those that are not C-contiguous are
            copied first.
        offsets: First byte of each array in the planes, default one array after the other.
        out: uint8 planes to write to, (B,) or (2, B); bytes that no array covers keep their value.
        **policy: ``zeros``, ``nan``, ``seed``, ``step``, ``rank``, ``offset`` of ``pack``. Random
            bits depend on the place in the planes. NaN is counted and never raises.

    Returns:
        (planes, zeros, NaNs) as ``pack_census``. Each array begins at a byte of its own.

    Raises:
        TypeError, ValueError: An argument does not fit; the text names the array.

    Example:
        >>> import numpy as np
        >>> from mpisign import planes
        >>> planes.pack_many([np.array([-1.0]), np.array([1.0, -1.0])])
        (array([1, 2], dtype=uint8), 0, 0)
    """
    function = "pack_many"
    checked = keys.policy(function, **policy)
    views = layout.gradients(function, "xs", xs)
    return layout.pack_views(
        function, layout.SIGN, _NO_PARAMETERS, views, None, checked, offsets, out
    )
