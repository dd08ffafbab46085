"""Majorities and tallies of stacks of planes."""

from __future__ import annotations

from typing import Any

from mpisign import policies
from mpisign.backend import arrays, threads
from mpisign.planes import layout
from mpisign.planes.weights import integer_weights


def majority(
    stack: Any,
    *,
    length: int | None = None,
    ties: policies.Ties = policies.DEFAULT_TIES,
    weights: Any = None,
    group: int = 1,
    seed: int = 0,
    step: int = 0,
    offset: int = 0,
    out: Any = None,
) -> Any:
    """The majority of each coordinate over a stack of planes.

    ``stack``: uint8 (n, B) sign planes, or (n, 2, B) sign and mask planes; NumPy, CuPy or torch; a
    list of planes is stacked first. ``length``: coordinates, default 8 B, which
    votes on the padding bits too: give it where there are masks. Returns uint8 of the same
    framework: (B,), or (2, B) under ``ties="zero"``, whose mask plane is 0 where there was no
    majority.

    ties (and coordinates on which nobody voted): "positive", "random" (Philox4x32-10 keyed by seed,
    counter (index, step), the same on every rank) or "zero". ``offset`` as in ``pack``.

    ``weights``: one non-negative integer or float a row; floats are taken exactly where integers
    below 2^31 in sum have their ratios, else to 24 bits of the largest. ``group``: r > 1
    has rows 0 .. r - 1, r .. 2 r - 1, ... vote among themselves first, then their majorities; a
    group that ties abstains. Not both.

    Counting is bit-sliced: carry-save full adders on planes (Harley, Seal). Raises TypeError,
    ValueError for arguments that do not fit.
    """
    planes, _ = _majority(stack, length, ties, weights, group, seed, step, offset, out)
    return planes


def majority_census(
    stack: Any,
    *,
    length: int | None = None,
    ties: policies.Ties = policies.DEFAULT_TIES,
    weights: Any = None,
    group: int = 1,
    seed: int = 0,
    step: int = 0,
    offset: int = 0,
    out: Any = None,
) -> tuple[Any, Any]:
    """``majority`` that returns (planes, coordinates that tied); on a GPU a device scalar."""
    return _majority(stack, length, ties, weights, group, seed, step, offset, out)


def _majority(
    stack: Any,
    length: int | None,
    ties: policies.Ties,
    weights: Any,
    group: int,
    seed: int,
    step: int,
    offset: int,
    out: Any,
) -> tuple[Any, Any]:
    s, shape, length = layout.stack_view("majority", stack, length)
    rows, nbytes = shape[0], shape[-1]
    if group < 1 or rows % group or (group > 1 and weights is not None):
        raise ValueError(
            f"majority: group must be 1 or divide the {rows} rows, and goes without weights, "
            f"got {group}"
        )
    code = policies.code("majority", "ties", ties, policies.TIES)
    keys = layout.random("majority", seed, step, 0, offset)
    out, sign, mask = layout.planes_out("majority", out, nbytes, ties == "zero", False, s)
    of_rows = None if weights is None else integer_weights("majority", weights, rows)
    tied = s.kernels.majority(
        s.address,
        *layout.strides_of(s, shape),
        rows,
        length,
        0 if of_rows is None else arrays.address_like(of_rows, s),
        group,
        sign,
        mask,
        code,
        (keys[0], keys[1], policies.TIE_STREAM, keys[3]),
        threads.for_work(rows * nbytes),
    )
    return out, tied


def tally(stack: Any, *, length: int | None = None, weights: Any = None, out: Any = None) -> Any:
    """How many rows voted negative at each coordinate, as count planes.

    ``stack``, ``length``, ``weights``: as ``majority`` takes them. Returns uint8 (k, B), plane j
    holding bit j of the counts, k the bit length of the sum of weights (of the number of rows); for
    masked stacks (2, k, B): negative votes, then positive ones. Padding bits are 0. Count planes
    are what nodes exchange in a hierarchical vote; ``mean_of_counts`` averages them.

    Raises TypeError, ValueError for arguments that do not fit.
    """
    s, shape, length = layout.stack_view("tally", stack, length)
    rows, nbytes = shape[0], shape[-1]
    of_rows = None if weights is None else integer_weights("tally", weights, rows)
    total = rows if of_rows is None else int(of_rows.sum())
    k = max(1, total.bit_length())
    masked = len(shape) == 3
    wanted: tuple[int, ...] = (2, k, nbytes) if masked else (k, nbytes)
    if out is None:
        out = arrays.empty(wanted, "uint8", like=s)
    o = arrays.view_bytes("tally", "out", out, writable=True)
    layout.same_device("tally", "out", o, s)
    if o.shape != wanted or not o.contiguous:
        raise ValueError(f"tally: out must be C-contiguous of shape {wanted}, got {o.shape}")
    s.kernels.tally(
        s.address,
        *layout.strides_of(s, shape),
        rows,
        length,
        0 if of_rows is None else arrays.address_like(of_rows, s),
        k,
        o.address,
        o.address + k * nbytes if masked else 0,
        nbytes,
        threads.for_work(rows * nbytes),
    )
    return out
