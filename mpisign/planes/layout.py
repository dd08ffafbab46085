"""What the functions of mpisign.planes share: checks of their arguments, and kernel calls.

A public function checks, allocates, and makes one kernel call through a function that checks
nothing. Callers that know their arrays use those functions directly: ``pack_view`` (pack.py) and
``pack_table`` (here) write planes, ``majority_rows`` (vote.py) counts them, ``unpack_view``
(unpack.py) reads them. Each makes one kernel call. Their policies and keys come from
keys.py, made once a step. Public functions too take Views in place of arrays.
"""

from __future__ import annotations

import itertools
import struct
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from mpisign.backend import arrays, threads
from mpisign.planes.keys import Random

#: Codes of pack_pieces (kernels/host.h).
SIGN, SIGNUM, LION, SPARSIGN = range(4)

#: (sign plane of the first row, its mask plane or 0, bytes from row to row, rows, coordinates).
Stack = tuple[int, int, int, int, int]

_MAX_ROWS = (1 << 31) - 1


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
    views = []
    for i, x in enumerate(xs):
        try:
            v = arrays.view_floats(function, argument, x)
        except (TypeError, ValueError):
            arrays.view_floats(function, f"{argument}[{i}]", x)  # raises, with the index
            raise
        v = v if v.contiguous else gradient(function, argument, v)
        views.append(v)
        if v.device != "cpu" or views[0].device != "cpu":
            same_device(function, f"{argument}[{i}]", v, views[0])
    return views


def output(
    function: str, argument: str, x: Any, like: arrays.View, dtypes: Sequence[str] | None = None
) -> arrays.View:
    """A view of a float array to write to: C-contiguous, on ``like``'s device.

    ``dtypes``: of state that is updated in place, as long as ``like``, its gradient.
    """
    v = arrays.view_floats(function, argument, x, writable=True)
    if dtypes is not None and v.dtype not in dtypes:
        raise TypeError(
            f"{function}: {argument} must have dtype {' or '.join(dtypes)}, got {v.dtype}"
        )
    if dtypes is not None and v.length != like.length:
        raise ValueError(
            f"{function}: {argument} must have {like.length} coordinates like its gradient, "
            f"got {v.length}"
        )
    if not v.contiguous:
        raise ValueError(f"{function}: {argument} must be C-contiguous, got strides {v.strides}")
    if v.device != "cpu" or like.device != "cpu":
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


def stacked(function: str, stack: Sequence[Any]) -> Any:
    """A list of planes as one array of them."""
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
) -> tuple[arrays.View, Stack, int, int]:
    """(view, addresses and sizes for kernels, planes a row, bytes a plane) of a stack of planes."""
    if isinstance(stack, (list, tuple)) and stack:
        stack = stacked(function, stack)
    s = arrays.view_bytes(function, "stack", stack)
    shape = s.shape
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[1] != 2):
        raise ValueError(f"{function}: stack must have shape (n, B) or (n, 2, B), got {shape}")
    rows, nbytes, k = shape[0], shape[-1], len(shape) - 1
    if not 1 <= rows <= _MAX_ROWS:
        raise ValueError(f"{function}: stack must hold at least one row, got shape {shape}")
    length = checked_length(function, length, nbytes)
    if s.contiguous:
        mask, stride = s.address + nbytes, k * nbytes
    else:
        strides = s.strides
        mask, stride = s.address + strides[1], strides[0]
    return s, (s.address, mask if k == 2 else 0, stride, rows, length), k, nbytes


def misfit(function: str, argument: str, length: int, nbytes: int) -> ValueError:
    """The error of ``length`` coordinates that do not take planes of ``nbytes`` bytes."""
    return ValueError(
        f"{function}: {argument} must have {max(0, 8 * nbytes - 7)} to {8 * nbytes} "
        f"coordinates for planes of {nbytes} bytes, got {length}"
    )


def checked_length(function: str, length: int | None, nbytes: int) -> int:
    """``length`` if planes of ``nbytes`` bytes can have it; 8 a byte for None."""
    if length is None:
        return 8 * nbytes
    if length < 0 or (length + 7) // 8 != nbytes:
        raise ValueError(
            f"{function}: length must fit planes of {nbytes} bytes "
            f"({max(0, 8 * nbytes - 7)} to {8 * nbytes}), got {length}"
        )
    return length


def planes_in(function: str, planes: Any) -> tuple[arrays.View, int, int]:
    """(view, address of the mask plane or 0, B) of planes (B,) or (2, B)."""
    p = arrays.view_bytes(function, "planes", planes)
    shape = p.shape
    if len(shape) == 1:
        return p, 0, shape[0]
    if len(shape) != 2 or shape[0] != 2:
        raise ValueError(f"{function}: planes must have shape (B,) or (2, B), got {shape}")
    return p, p.address + (shape[1] if p.contiguous else p.strides[0]), shape[1]


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
    if o.device != "cpu" or like.device != "cpu":
        same_device(function, "out", o, like)
    if o.shape != shape and not (gaps and o.shape[:-1] == shape[:-1] and o.shape[-1] > nbytes):
        raise ValueError(f"{function}: out must have shape {shape}, got {o.shape}")
    if not two:
        return out, o.address, 0
    stride = o.strides[0]
    if abs(stride) < nbytes:
        raise ValueError(f"{function}: out must have planes that do not overlap")
    return out, o.address, o.address + stride


def pieces(
    views: Sequence[arrays.View],
    starts: Sequence[int],
    momenta: Sequence[arrays.View] | None = None,
) -> bytes:
    """The table that ``pack_table`` takes, int64 (n, 6); good as long as no array moves."""
    codes = arrays.FLOAT_CODES
    states: Sequence[arrays.View | None] = momenta or [None] * len(views)
    table: list[int] = []
    for v, start, m in zip(views, starts, states, strict=True):
        momentum = (0, 0) if m is None else (m.address, codes[m.dtype])
        table += (v.address, v.length, codes[v.dtype], start, *momentum)
    return struct.pack(f"={len(table)}q", *table)


def pack_table(
    kernels: Any,
    rule: int,
    parameters: tuple[float, float, float, float],
    table: bytes,
    planes: tuple[int, int],
    zeros: int,
    key: Random,
    work: int,
) -> Any:
    """Packs many arrays: (zeros, NaNs). Checks nothing.

    ``kernels``: ``View.kernels`` of one of them. ``rule``, ``parameters``: see _kernels.pyi.
    ``table``: from ``pieces``. ``planes``: addresses of the sign plane and of the mask plane or 0.
    ``zeros``, ``key``: from ``policy``. ``work``: coordinates in all.
    """
    n_threads = 1 if work < threads.WORTH_A_THREAD else threads.count()
    return kernels.pack_pieces(rule, parameters, table, *planes, zeros, key, n_threads)


def pack_views(
    function: str,
    rule: int,
    parameters: tuple[float, float, float, float],
    views: Sequence[arrays.View],
    momenta: Sequence[arrays.View] | None,
    policy: tuple[int, bool, Random],
    offsets: Sequence[int] | None,
    out: Any,
) -> tuple[Any, Any, Any]:
    """``pack_table`` of checked views: (planes, zeros, NaNs)."""
    zeros, two, key = policy
    starts, nbytes = places(function, views, offsets)
    out, sign, mask = planes_out(function, out, nbytes, two, offsets is not None, views[0])
    table, work = pieces(views, starts, momenta), sum([v.length for v in views])
    kernels = views[0].kernels
    counted = pack_table(kernels, rule, parameters, table, (sign, mask), zeros, key, work)
    return out, counted[0], counted[1]


def _in_c_order(v: arrays.View) -> Any:
    if v.is_torch:
        return v.owner.contiguous()
    cupy = sys.modules.get("cupy")
    xp: Any = np if isinstance(v.owner, np.ndarray) or cupy is None else cupy
    return xp.ascontiguousarray(v.owner).reshape(v.shape)
