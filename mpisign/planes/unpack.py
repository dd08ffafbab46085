"""Planes to floats: written, added, or as an optimizer's step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mpisign import _kernels
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
    """Unpacks planes: ``scale`` for +, ``-scale`` for -, +0.0 where the mask plane is 0.

    Args:
        planes: uint8 (B,), or (2, B) with a mask plane.
        shape: Of the result, 8 B - 7 to 8 B coordinates, default (8 B,).
        dtype: float32, float16, bfloat16 or float64, as a name, a NumPy or a torch dtype.
        scale: Magnitude of the result.
        out: C-contiguous array to write to; its shape and dtype then hold.

    Returns:
        An array of the same framework and device, or ``out``.

    Raises:
        TypeError, ValueError: An argument does not fit.

    Example:
        >>> import numpy as np
        >>> from mpisign import planes
        >>> planes.unpack(np.array([0b110], dtype=np.uint8), 3, scale=0.5)
        array([ 0.5, -0.5, -0.5], dtype=float32)
    """
    p, mask, nbytes = layout.planes_in("unpack", planes)
    if out is None:
        name = "float32" if dtype == "float32" else arrays.float_name("unpack", "dtype", dtype)
        out = arrays.empty(_dims(8 * nbytes if shape is None else shape), name, like=p)
    o = layout.output("unpack", "out", out, p)
    if (o.length + 7) // 8 != nbytes:
        raise layout.misfit("unpack", "shape", o.length, nbytes)
    unpack_view(o, p.address, mask, scale)
    return out


def unpack_view(o: arrays.View, sign: int, mask: int, scale: float = 1.0) -> None:
    """Unpacks planes into a contiguous array. Checks nothing.

    ``sign``, ``mask``: addresses of planes, ``mask`` 0 for none.
    """
    code, n_threads = arrays.FLOAT_CODES[o.dtype], threads.for_work(o.length)
    o.kernels.unpack(sign, mask, o.length, code, float(scale), o.address, n_threads)


def unpack_pieces(pieces: Sequence[tuple[int, int, int, int, int]]) -> None:
    """Unpacks planes into contiguous arrays in host memory, +1, -1 or 0. Checks nothing.

    ``pieces``: addresses of the sign plane and of the mask plane or 0, coordinates, code of the
    dtype, address of the array.
    """
    for sign, mask, length, code, address in pieces:
        n_threads = 1 if length < threads.WORTH_A_THREAD else threads.count()
        _kernels.unpack(sign, mask, length, code, 1.0, address, n_threads)


def unpack_add(planes: Any, out: Any, *, scale: float = 1.0) -> Any:
    """Adds ``scale`` to ``out`` for +, subtracts it for -; no change where the mask plane is 0.

    Args:
        planes: uint8 (B,) or (2, B).
        out: float32, float16, bfloat16 or float64, C-contiguous, any shape of 8 B - 7 to 8 B
            coordinates. Adds in fp32 and rounds once; float64 in float64.
        scale: What to add.

    Returns:
        ``out``.

    Raises:
        TypeError, ValueError: An argument does not fit.

    Example:
        >>> import numpy as np
        >>> from mpisign import planes
        >>> planes.unpack_add(np.array([0b10], dtype=np.uint8), np.ones(2), scale=0.5)
        array([1.5, 0.5])
    """
    place, n_threads = _place("unpack_add", planes, "out", out)
    place[0].kernels.unpack_add(*place[1], float(scale), place[2], n_threads)
    return out


def update(planes: Any, parameter: Any, *, rate: float, weight_decay: float = 0.0) -> Any:
    """Steps: ``parameter`` -= rate (V + weight_decay parameter), V the vote +1, -1 or 0.

    Args:
        planes: uint8 (B,) or (2, B), the result of a vote; V is 0 where the mask plane is 0.
        parameter: As ``out`` of ``unpack_add``. Each operation is rounded in fp32, the result once
            more to the parameter's dtype; float64 in float64.
        rate: Learning rate.
        weight_decay: Decoupled weight decay, applied after the vote.

    Returns:
        ``parameter``.

    Raises:
        TypeError, ValueError: An argument does not fit.

    Source: Bernstein et al. 2019, signSGD with majority vote, Algorithm 1.

    Example:
        >>> import numpy as np
        >>> from mpisign import planes
        >>> planes.update(np.array([0b10], dtype=np.uint8), np.ones(2), rate=0.5)
        array([0.5, 1.5])
    """
    place, n_threads = _place("update", planes, "parameter", parameter)
    place[0].kernels.update(*place[1], float(rate), float(weight_decay), place[2], n_threads)
    return parameter


def _place(
    function: str, planes: Any, argument: str, x: Any
) -> tuple[tuple[arrays.View, tuple[int, int, int, int], int], int]:
    """((view of the planes, (sign, mask, length, dtype code), address of ``x``), threads)."""
    p, mask, nbytes = layout.planes_in(function, planes)
    o = layout.output(function, argument, x, p)
    if (o.length + 7) // 8 != nbytes:
        raise layout.misfit(function, argument, o.length, nbytes)
    votes = (p.address, mask, o.length, arrays.FLOAT_CODES[o.dtype])
    return (p, votes, o.address), threads.for_work(o.length)


def _dims(shape: int | Sequence[int]) -> tuple[int, ...]:
    dims = (int(shape),) if isinstance(shape, (int, np.integer)) else tuple(int(n) for n in shape)
    if min(dims, default=0) < 0:
        raise ValueError(f"unpack: shape must not be negative, got {shape}")
    return dims
