"""The ground floor: arrays to sign planes, majorities of planes, planes to arrays.

Wire layout (also in memory): a plane of d coordinates is ceil(d / 8) bytes, element i at bit i
(little-endian, as ``numpy.packbits(bitorder="little")``), padding bits 0. In a sign plane 1 means
negative; in a mask plane 1 means that the coordinate votes. Planes of one tensor are the rows of
one uint8 array: shape (B,) is a sign plane alone, shape (2, B) a sign plane and its mask plane.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mpisign import _kernels, arrays, policies, threads

_MAX_ROWS = (1 << 31) - 1


def plane_bytes(length: int) -> int:
    """Bytes of one plane of ``length`` coordinates."""
    return (length + 7) // 8


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

    ``x``: NumPy array or torch CPU tensor of float32, float16, bfloat16 or float64, any shape, any
    strides, read in C order without a copy. Returns uint8 of the same framework: (B,), or (2, B)
    under ``zeros="abstain"`` or ``nan="abstain"``; B = ceil(x.size / 8).

    zeros: what 0.0 and -0.0 vote: "positive", "random" (Philox4x32-10 keyed by seed, counter
    (index, step, rank)) or "abstain". nan: "raise" (ValueError with the count) or "abstain".
    ``offset``: coordinates, a multiple of 8, that lie before ``x`` in the tensor or bucket it is
    part of; it moves the random bits only. ``out``: uint8 to write into, no part of ``x``.

    Raises TypeError, ValueError for arguments that do not fit. Source: Bernstein et al. 2018
    (signSGD); Salmon et al., SC11 (Philox).
    """
    planes, _, nans = pack_census(
        x, zeros=zeros, nan=nan, seed=seed, step=step, rank=rank, offset=offset, out=out
    )
    if nans and nan == "raise":
        raise ValueError(
            f"pack: x must hold no NaN under nan='raise', got {nans} "
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
) -> tuple[Any, int, int]:
    """``pack`` that returns (planes, zeros counted, NaNs counted) and never raises on NaN.

    For collectives: a rank that raised alone would leave the others waiting.
    """
    v = arrays.view_floats("pack", "x", x)
    zeros_code = policies.code("pack", "zeros", zeros, policies.ZEROS)
    policies.code("pack", "nan", nan, policies.NAN)
    _check_offset("pack", offset)
    if not 0 <= rank < policies.TIE_STREAM:
        raise ValueError(f"pack: rank must be in [0, 2**31), got {rank}")
    two = policies.planes_up(zeros, nan) == 2
    nbytes = plane_bytes(v.length)
    shape = (2, nbytes) if two else (nbytes,)
    if out is None:
        out = arrays.empty(shape, "uint8", torch_like=v.is_torch)
    o = arrays.view_bytes("pack", "out", out, writable=True)
    if o.shape != shape:
        raise ValueError(f"pack: out must have shape {shape}, got {o.shape}")
    counted = _kernels.pack(
        v.address,
        arrays.FLOATS.index(v.dtype),
        v.shape,
        v.strides,
        o.address,
        o.address + o.strides[0] if two else 0,
        zeros_code,
        _u64("pack", "seed", seed),
        _u64("pack", "step", step),
        rank,
        offset // 8,
        threads.count(),
    )
    return out, counted[0], counted[1]


def majority(
    stack: Any,
    *,
    length: int | None = None,
    ties: policies.Ties = policies.DEFAULT_TIES,
    seed: int = 0,
    step: int = 0,
    offset: int = 0,
    out: Any = None,
) -> Any:
    """The majority of each coordinate over a stack of planes.

    ``stack``: uint8 (n, B) sign planes, or (n, 2, B) sign and mask planes; NumPy or torch; a list
    of planes is stacked first. ``length``: coordinates, default 8 B. Returns uint8 of the same
    framework: (B,), or (2, B) under ``ties="zero"``, whose mask plane is 0 where there was no
    majority.

    ties (and coordinates on which nobody voted): "positive", "random" (Philox4x32-10 keyed by seed,
    counter (index, step), the same on every rank) or "zero". ``offset`` as in ``pack``.

    Counting is bit-sliced: carry-save full adders on planes (Harley, Seal). Raises TypeError,
    ValueError for arguments that do not fit.
    """
    planes, _ = majority_census(
        stack, length=length, ties=ties, seed=seed, step=step, offset=offset, out=out
    )
    return planes


def majority_census(
    stack: Any,
    *,
    length: int | None = None,
    ties: policies.Ties = policies.DEFAULT_TIES,
    seed: int = 0,
    step: int = 0,
    offset: int = 0,
    out: Any = None,
) -> tuple[Any, int]:
    """``majority`` that returns (planes, coordinates that tied)."""
    s = arrays.view_bytes("majority", "stack", _stacked(stack))
    if len(s.shape) not in (2, 3) or (len(s.shape) == 3 and s.shape[1] != 2):
        raise ValueError(f"majority: stack must have shape (n, B) or (n, 2, B), got {s.shape}")
    rows, nbytes = s.shape[0], s.shape[-1]
    if not 1 <= rows <= _MAX_ROWS:
        raise ValueError(f"majority: stack must hold at least one row, got shape {s.shape}")
    if length is None:
        length = 8 * nbytes
    if length < 0 or plane_bytes(length) != nbytes:
        raise ValueError(
            f"majority: length must fit planes of {nbytes} bytes "
            f"({max(0, 8 * nbytes - 7)} to {8 * nbytes}), got {length}"
        )
    _check_offset("majority", offset)
    two = policies.planes_down(ties) == 2
    shape = (2, nbytes) if two else (nbytes,)
    if out is None:
        out = arrays.empty(shape, "uint8", torch_like=s.is_torch)
    o = arrays.view_bytes("majority", "out", out, writable=True)
    if o.shape != shape:
        raise ValueError(f"majority: out must have shape {shape}, got {o.shape}")
    masked = len(s.shape) == 3
    tied = _kernels.majority(
        s.address,
        s.address + s.strides[1] if masked else 0,
        s.strides[0],
        s.strides[0],
        rows,
        length,
        o.address,
        o.address + o.strides[0] if two else 0,
        policies.code("majority", "ties", ties, policies.TIES),
        _u64("majority", "seed", seed),
        _u64("majority", "step", step),
        offset // 8,
        threads.count(),
    )
    return out, tied


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
        if shape is None:
            shape = 8 * nbytes
        dims = tuple(int(n) for n in np.atleast_1d(shape)) if np.ndim(shape) < 2 else ()
        if min(dims, default=0) < 0:
            raise ValueError(f"unpack: shape must not be negative, got {shape}")
        name = arrays.float_name("unpack", "dtype", dtype)
        out = arrays.empty(dims, name, torch_like=p.is_torch)
    o = arrays.view_floats("unpack", "out", out, writable=True)
    if not o.contiguous:
        raise ValueError(f"unpack: out must be C-contiguous, got strides {o.strides}")
    if plane_bytes(o.length) != nbytes:
        raise ValueError(
            f"unpack: shape must have {max(0, 8 * nbytes - 7)} to {8 * nbytes} coordinates "
            f"for planes of {nbytes} bytes, got {o.length}"
        )
    _kernels.unpack(
        p.address,
        p.address + p.strides[0] if len(p.shape) == 2 else 0,
        o.length,
        arrays.ITEM_SIZE[o.dtype],
        _bits(scale, o.dtype),
        o.address,
        threads.count(),
    )
    return out


def padding_is_zero(planes: np.ndarray[Any, Any], length: int) -> np.ndarray[Any, Any]:
    """Whether the padding bits behind coordinate ``length`` are 0, for each plane of (..., B)."""
    used = length % 8
    if used == 0:
        return np.ones(planes.shape[:-1], dtype=bool)
    result: np.ndarray[Any, Any] = planes[..., -1] >> used == 0
    return result


def _stacked(stack: Any) -> Any:
    if not isinstance(stack, (list, tuple)) or not stack:
        return stack
    if arrays.is_torch(stack[0]):
        import torch

        return torch.stack(list(stack))
    if len({np.shape(row) for row in stack}) > 1:
        shapes = ", ".join(str(np.shape(row)) for row in stack)
        raise ValueError(f"majority: planes of a stack must have one shape, got {shapes}")
    return np.stack(stack)


def _check_offset(function: str, offset: int) -> None:
    if not 0 <= offset < 1 << 64 or offset % 8:
        raise ValueError(f"{function}: offset must be a multiple of 8, from 0, got {offset}")


def _u64(function: str, argument: str, value: int) -> int:
    if not 0 <= value < 1 << 64:
        raise ValueError(f"{function}: {argument} must be in [0, 2**64), got {value}")
    return int(value)


def _bits(scale: float, dtype: str) -> int:
    """The bit pattern of ``scale`` in ``dtype``, rounded to nearest, ties to even."""
    if dtype == "float64":
        return int(np.float64(scale).view(np.uint64))
    if dtype == "float16":
        return int(np.float16(scale).view(np.uint16))
    bits = int(np.float32(scale).view(np.uint32))
    if dtype == "float32":
        return bits
    if scale != scale:
        return 0x7FC0
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) & 0xFFFF
