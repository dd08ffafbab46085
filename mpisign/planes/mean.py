"""Means of signs: weighted sums of sign planes, and of count planes, in fp32."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpisign.backend import arrays, threads
from mpisign.planes import layout

_LINE = 16  # floats of a cache line
_LONG = 1 << 20  # floats that are written past the cache (kernels/lanes.h)
_MAX_VOTERS = (1 << 23) - 1  # their counts' partial sums are whole numbers of fp32


def weighted_sum(
    stack: Any,
    weights: Any,
    *,
    block: int | None = None,
    length: int | None = None,
    out: Any = None,
) -> Any:
    """Sums +-weight over the rows, in the order of the rows: a mean of scaled signs.

    fp32, one rounded addition for each row.

    Args:
        stack: Planes as ``majority`` takes them; votes absent by a mask add nothing.
        weights: float32 (n,) or (n, blocks), one for each row and block: the scales of
            ``pack_error_feedback`` divided by n give their mean.
        block: Coordinates of a block, a multiple of 8, default all of them.
        length: Coordinates, default 8 B.
        out: float32 array to write to, C-contiguous, any shape of ``length`` coordinates.

    Returns:
        float32 (length,) of the same framework, or ``out``.

    Raises:
        TypeError, ValueError: An argument does not fit.

    Example:
        >>> import numpy as np
        >>> from mpisign import planes
        >>> rows = np.array([[0b01], [0b11]], dtype=np.uint8)
        >>> planes.weighted_sum(rows, [2.0, 1.0], length=2)
        array([-3.,  1.], dtype=float32)
    """
    function = "weighted_sum"
    s, of_stack, _, _ = layout.stack_view(function, stack, length)
    rows, length = of_stack[3:]
    block = max(1, length) if block is None else block
    if block < 1 or (block % 8 and block < length):
        raise ValueError(f"{function}: block must be a positive multiple of 8, got {block}")
    blocks = -(-length // block)
    w, owner = _float32(weights, s)
    shapes = [(rows, blocks)] + ([(rows,)] if blocks <= 1 else [])
    if tuple(owner.shape) not in shapes:
        raise ValueError(
            f"{function}: weights must have shape {shapes[0]}, got {tuple(owner.shape)}"
        )
    out, o = _float32_out(function, out, length, s)
    n_threads = threads.for_work(length)
    s.kernels.weighted_sum(*of_stack, w, block, 0.0, 1.0, o.address, n_threads)
    return out


def mean_of_counts(counts: Any, voters: int, *, length: int | None = None, out: Any = None) -> Any:
    """Returns the mean of ``voters`` signs, (voters - 2 c) / voters where c are negative.

    fp32: voters - 2 c is exact, 1 / voters is rounded, and so is their product.

    Args:
        counts: uint8 (k, B), plane j has bit j of c, as ``tally`` returns for stacks without
            masks; planes beyond the bits of ``voters`` are ignored.
        voters: Rows that were tallied, below 2**23.
        length: Coordinates, default 8 B.
        out: As ``weighted_sum`` takes it.

    Returns:
        As ``weighted_sum``.

    Raises:
        TypeError, ValueError: An argument does not fit.

    Example:
        >>> import numpy as np
        >>> from mpisign import planes
        >>> planes.mean_of_counts(np.array([[0b10], [0b11]], dtype=np.uint8), 4, length=2)
        array([ 0. , -0.5], dtype=float32)
    """
    function = "mean_of_counts"
    s = arrays.view_bytes(function, "counts", counts)
    if len(s.shape) != 2 or not 1 <= s.shape[0] <= 32:
        raise ValueError(f"{function}: counts must have shape (1 to 32, B), got {s.shape}")
    if not 1 <= voters <= _MAX_VOTERS:
        raise ValueError(f"{function}: voters must be in [1, 2**23), got {voters}")
    length = layout.checked_length(function, length, s.shape[-1])
    planes = min(s.shape[0], int(voters).bit_length())
    w, _owner = _float32(2.0 ** np.arange(planes), s)
    out, o = _float32_out(function, out, length, s)
    # A plane's 0 adds its weight and its 1 takes it away: n - (2^k - 1) + (2^k - 1) - 2 c.
    line = (float(voters - ((1 << planes) - 1)), 1.0 / voters)
    rows, n_threads = (s.address, 0, s.strides[0], planes, length), threads.for_work(length)
    s.kernels.weighted_sum(*rows, w, max(1, length), *line, o.address, n_threads)
    return out


def _float32_out(
    function: str, out: Any, length: int, like: arrays.View
) -> tuple[Any, arrays.View]:
    if out is None:
        out = _new(length, like)
    o = arrays.view_floats(function, "out", out, writable=True)
    layout.same_device(function, "out", o, like)
    if o.dtype != "float32" or o.length != length or not o.contiguous:
        raise ValueError(
            f"{function}: out must be C-contiguous float32 of {length} coordinates, "
            f"got {o.dtype} {o.shape}"
        )
    return out, o


def _new(length: int, like: arrays.View) -> Any:
    """An output that begins with a cache line, so that it is written past the cache."""
    if not isinstance(like.owner, np.ndarray) or length < _LONG:
        return arrays.empty((length,), "float32", like=like)
    room = np.empty(length + _LINE, dtype=np.float32)
    start = -room.ctypes.data // room.itemsize % _LINE
    return room[start : start + length]


def _float32(values: Any, like: arrays.View) -> tuple[int, Any]:
    """(address in ``like``'s memory, owner) of ``values`` as float32 in C order."""
    on_host = isinstance(values, (np.ndarray, list, tuple))
    if on_host or (arrays.is_torch(values) and values.device.type == "cpu"):
        host = values.detach().float().numpy() if arrays.is_torch(values) else values
        host = np.ascontiguousarray(host, dtype=np.float32)
        return arrays.address_like(host, like), host
    v = arrays.view_floats("weighted_sum", "weights", values)
    layout.same_device("weighted_sum", "weights", v, like)
    if v.dtype != "float32" or not v.contiguous:
        raise ValueError(
            "weighted_sum: weights on a GPU must be C-contiguous float32, "
            f"got {v.dtype} with strides {v.strides}"
        )
    return v.address, values
