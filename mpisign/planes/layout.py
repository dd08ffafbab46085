"""Lists of arrays and where each lies in the planes: what the functions that pack them share."""

from __future__ import annotations

import itertools
import math
import struct
import sys
from collections.abc import Sequence
from operator import index
from typing import Any

import numpy as np

from mpisign import policies
from mpisign.backend import arrays, threads

#: Codes of pack_pieces (kernels/host.h).
SIGN, SIGNUM, LION, SPARSIGN = range(4)

_U64 = 1 << 64
_MAX_ROWS = (1 << 31) - 1
_FP32 = struct.Struct("f")


def listed(xs: Any) -> list[Any]:
    """One array as a list of one; a list or tuple as a list."""
    return list(xs) if isinstance(xs, (list, tuple)) else [xs]


def gradient(function: str, argument: str, x: Any) -> arrays.View:
    """A view of a float array, or of a copy if it is not C-contiguous."""
    v = arrays.view_floats(function, argument, x)
    return v if v.contiguous else arrays.view_floats(function, argument, _in_c_order(v))


def gradients(function: str, argument: str, xs: Any) -> list[arrays.View]:
    """``gradient`` of one array or of several, all on one device."""
    if not isinstance(xs, (list, tuple)):
        return [gradient(function, argument, xs)]
    if not xs:
        raise ValueError(f"{function}: {argument} must hold at least one array, got none")
    try:
        views = [gradient(function, argument, x) for x in xs]
    except (TypeError, ValueError):
        for i, x in enumerate(xs):  # once more, to say which
            gradient(function, f"{argument}[{i}]", x)
        raise
    if any(v.device != views[0].device for v in views):
        for i, v in enumerate(views):
            same_device(function, f"{argument}[{i}]", v, views[0])
    return views


def in_place(
    function: str, argument: str, x: Any, like: arrays.View, dtypes: Sequence[str]
) -> arrays.View:
    """A view of an array that is updated: ``like``'s length, one of ``dtypes``, in C order."""
    v = arrays.view_floats(function, argument, x, writable=True)
    if v.dtype not in dtypes:
        raise TypeError(
            f"{function}: {argument} must have dtype {' or '.join(dtypes)}, got {v.dtype}"
        )
    if v.length != like.length:
        raise ValueError(
            f"{function}: {argument} must have {like.length} coordinates like its gradient, "
            f"got {v.length}"
        )
    if not v.contiguous:
        raise ValueError(f"{function}: {argument} must be C-contiguous, got strides {v.strides}")
    same_device(function, argument, v, like)
    return v


def same_device(function: str, argument: str, v: arrays.View, like: arrays.View) -> None:
    """TypeError unless both arrays lie in the same memory: a kernel takes addresses of one."""
    if v.device != "cpu" and v.is_torch != like.is_torch:
        # Each framework has streams of its own: nothing would order their kernels.
        raise TypeError(f"{function}: {argument} must be of the framework of the rest on a GPU")
    if v.device != like.device:
        raise TypeError(
            f"{function}: {argument} must be on device {like.device} like the rest, got {v.device}"
        )


def stacked(function: str, stack: Any) -> Any:
    """A list of planes as one array of them; anything else as it is."""
    if not isinstance(stack, (list, tuple)) or not stack:
        return stack
    for i, row in enumerate(stack):
        arrays.view_bytes(function, f"stack[{i}]", row)
    if arrays.is_torch(stack[0]):
        import torch

        return torch.stack(list(stack))
    if len({np.shape(row) for row in stack}) > 1:
        shapes = ", ".join(str(np.shape(row)) for row in stack)
        raise ValueError(f"{function}: planes of a stack must have one shape, got {shapes}")
    if isinstance(stack[0], np.ndarray):
        return np.stack(stack)
    import cupy

    return cupy.stack(stack)


def stack_view(
    function: str, stack: Any, length: int | None
) -> tuple[arrays.View, tuple[int, ...], int]:
    """The stack, its shape, and how many coordinates its planes have."""
    s = arrays.view_bytes(function, "stack", stacked(function, stack))
    shape = s.shape
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[1] != 2):
        raise ValueError(f"{function}: stack must have shape (n, B) or (n, 2, B), got {shape}")
    nbytes = shape[-1]
    if not 1 <= shape[0] <= _MAX_ROWS:
        raise ValueError(f"{function}: stack must hold at least one row, got shape {shape}")
    return s, shape, checked_length(function, length, nbytes)


def checked_length(function: str, length: int | None, nbytes: int) -> int:
    """The coordinates of planes of ``nbytes`` bytes: ``length`` if it fits, 8 a byte for None."""
    if length is None:
        return 8 * nbytes
    if length < 0 or (length + 7) // 8 != nbytes:
        raise ValueError(
            f"{function}: length must fit planes of {nbytes} bytes "
            f"({max(0, 8 * nbytes - 7)} to {8 * nbytes}), got {length}"
        )
    return length


def strides_of(s: arrays.View, shape: tuple[int, ...]) -> tuple[int, int]:
    """(address of the first mask plane or 0, bytes from row to row)."""
    if not s.contiguous:
        strides = s.strides
        return s.address + strides[1] if len(shape) == 3 else 0, strides[0]
    if len(shape) == 3:
        return s.address + shape[2], 2 * shape[2]
    return 0, shape[1]


def planes_in(function: str, planes: Any) -> tuple[arrays.View, int, int]:
    """Planes (B,) or (2, B): (their view, the address of the mask plane or 0, B)."""
    p = arrays.view_bytes(function, "planes", planes)
    shape = p.shape
    if len(shape) not in (1, 2) or (len(shape) == 2 and shape[0] != 2):
        raise ValueError(f"{function}: planes must have shape (B,) or (2, B), got {shape}")
    return p, p.address + p.strides[0] if len(shape) == 2 else 0, shape[-1]


def places(
    function: str, views: Sequence[arrays.View], offsets: Sequence[int] | None
) -> tuple[list[int], int]:
    """The first byte of each array in the planes, and the bytes that they take, gaps too."""
    lengths = [(v.length + 7) // 8 for v in views]
    if offsets is None:
        ends = list(itertools.accumulate(lengths, initial=0))
        return ends[:-1], ends[-1]
    starts = [int(start) for start in offsets]
    if len(starts) != len(views):
        raise ValueError(
            f"{function}: offsets must have one byte for each of {len(views)} arrays, "
            f"got {len(starts)}"
        )
    end = 0
    for start, nbytes in sorted(zip(starts, lengths, strict=True)):
        if start < end and nbytes:
            raise ValueError(
                f"{function}: offsets must be at least 0 and leave each array its bytes, "
                f"got {starts} for {lengths} bytes"
            )
        if nbytes:
            end = start + nbytes
    return starts, end


def planes_out(
    function: str, out: Any, nbytes: int, two: bool, gaps: bool, like: arrays.View
) -> tuple[Any, int, int]:
    """(planes, address of the sign plane, of the mask plane or 0); new ones if ``out`` is None.

    ``out`` may be longer than ``nbytes``: what no array covers stays as it is.
    """
    shape: tuple[int, ...] = (2, nbytes) if two else (nbytes,)
    if out is None:
        out = arrays.empty(shape, "uint8", like=like)
        if gaps:
            out[...] = 0
        start = arrays.address(out)
        return out, start, start + nbytes if two else 0
    o = arrays.view_bytes(function, "out", out, writable=True)
    same_device(function, "out", o, like)
    if o.shape != shape and not (gaps and o.shape[:-1] == shape[:-1] and o.shape[-1] > nbytes):
        raise ValueError(f"{function}: out must have shape {shape}, got {o.shape}")
    if two and abs(o.strides[0]) < nbytes:
        raise ValueError(f"{function}: out must have planes that do not overlap")
    return out, o.address, o.address + o.strides[0] if two else 0


def pieces(
    views: Sequence[arrays.View],
    starts: Sequence[int],
    momenta: Sequence[arrays.View] | None = None,
) -> bytes:
    """The table that ``pack_pieces`` reads: int64 (n, 6)."""
    codes = arrays.FLOAT_CODES
    table: list[int] = []
    if momenta is None:
        for v, start in zip(views, starts, strict=True):
            table += (v.address, v.length, codes[v.dtype], start, 0, 0)
    else:
        for v, start, m in zip(views, starts, momenta, strict=True):
            table += (v.address, v.length, codes[v.dtype], start, m.address, codes[m.dtype])
    return struct.pack(f"={len(table)}q", *table)


def pack_views(
    rule: int,
    parameters: tuple[float, float, float, float],
    views: Sequence[arrays.View],
    momenta: Sequence[arrays.View] | None,
    planes: tuple[Any, int, int],
    starts: Sequence[int],
    zeros_code: int,
    keys: tuple[int, int, int, int],
) -> tuple[Any, Any, Any]:
    """One call of ``pack_pieces``: (planes, zeros, NaNs)."""
    out, sign, mask = planes
    work = sum(v.length for v in views)
    table = pieces(views, starts, momenta)
    counted = views[0].kernels.pack_pieces(
        rule, parameters, table, sign, mask, zeros_code, keys, threads.for_work(work)
    )
    return out, counted[0], counted[1]


def random(
    function: str, seed: int, step: int, rank: int, offset: int
) -> tuple[int, int, int, int]:
    """What keys this rank's random bits; ``offset``: coordinates before the planes."""
    seed, step, offset = index(seed), index(step), index(offset)
    if not (0 <= seed < _U64 and 0 <= step < _U64):
        name, value = ("step", step) if 0 <= seed < _U64 else ("seed", seed)
        raise ValueError(f"{function}: {name} must be in [0, 2**64), got {value}")
    if not 0 <= rank < policies.TIE_STREAM:
        raise ValueError(f"{function}: rank must be in [0, 2**31), got {rank}")
    if not 0 <= offset < _U64 or offset % 8:
        raise ValueError(f"{function}: offset must be a multiple of 8, from 0, got {offset}")
    return seed, step, index(rank), offset // 8


def fp32(function: str, argument: str, value: float, low: float, high: float) -> float:
    """A parameter of a kernel: ValueError unless ``low <= value <= high`` once rounded to fp32."""
    try:
        rounded = _FP32.unpack(_FP32.pack(value))[0]
    except OverflowError:
        rounded = math.copysign(math.inf, value)
    if not low <= rounded <= high:
        raise ValueError(
            f"{function}: {argument} must be in [{low:g}, {high:g}] in float32, got {value!r}"
        )
    return float(value)


def _in_c_order(v: arrays.View) -> Any:
    if v.is_torch:
        return v.owner.contiguous()
    cupy = sys.modules.get("cupy")
    xp: Any = np if isinstance(v.owner, np.ndarray) or cupy is None else cupy
    return xp.ascontiguousarray(v.owner).reshape(v.shape)
