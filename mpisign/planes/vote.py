"""Majorities, tallies and distances of stacks of planes."""

from __future__ import annotations

from typing import Any, Unpack

import numpy as np

from mpisign import policies
from mpisign.backend import arrays, threads
from mpisign.planes import keys, layout
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
    """Returns the majority of each coordinate over a stack of planes.

    Args:
        stack: uint8 (n, B) sign planes, or (n, 2, B) sign and mask planes; NumPy, CuPy or torch; a
            list of planes is stacked first.
        length: Coordinates, default 8 B, where padding bits vote too: give it where there are
            masks.
        ties: What a coordinate becomes on which the vote ties or nobody votes: "positive",
            "random" (the same on every rank) or "zero".
        weights: One non-negative integer or float a row. Floats are exact where integers below
            2**31 in sum have their ratios, else rounded to 24 bits of the largest.
        group: r > 1 has rows 0 .. r - 1, r .. 2 r - 1, ... vote among themselves first, then their
            majorities; a group that ties abstains. Not with ``weights``.
        seed: Key of the random bits (Philox4x32-10, counter (index, step)), below 2**64.
        step: Number of the vote, below 2**64.
        offset: Coordinates before these in the tensor, a multiple of 8; moves the random bits only.
        out: uint8 array to write to.

    Returns:
        uint8 of the same framework: (B,), or (2, B) under ``ties="zero"``, whose mask plane is 0
        where there was no majority.

    Raises:
        TypeError: An array has another type, dtype or device.
        ValueError: A shape, policy, weight or group does not fit.

    Source: Bernstein et al. 2019, signSGD with majority vote; counted by carry-save adders on
    planes (Harley, Seal).

    Example:
        >>> import numpy as np
        >>> from mpisign import planes
        >>> planes.majority(np.array([[0b001], [0b011], [0b110]], dtype=np.uint8))
        array([3], dtype=uint8)
    """
    options = {"length": length, "weights": weights, "group": group, "out": out}
    return majority_census(stack, ties=ties, seed=seed, step=step, offset=offset, **options)[0]


def majority_census(
    stack: Any,
    *,
    length: int | None = None,
    ties: policies.Ties = policies.DEFAULT_TIES,
    weights: Any = None,
    group: int = 1,
    out: Any = None,
    **key: Unpack[keys.TieKey],
) -> tuple[Any, Any]:
    """Returns the majority of each coordinate, and how many coordinates tied.

    Args:
        stack, length, ties, weights, group, out: As ``majority`` takes them.
        **key: ``seed``, ``step``, ``offset`` of ``majority``.

    Returns:
        (planes as ``majority``, coordinates that tied). The count is an int; on a GPU a device
        scalar, not waited for.

    Raises:
        TypeError, ValueError: As ``majority``.

    Example:
        >>> import numpy as np
        >>> from mpisign import planes
        >>> planes.majority_census(np.array([[1], [3]], dtype=np.uint8), ties="positive")
        (array([1], dtype=uint8), 1)
    """
    s, of_stack, _, nbytes = layout.stack_view("majority", stack, length)
    rows = of_stack[3]
    if group < 1 or rows % group or (group > 1 and weights is not None):
        raise ValueError(
            f"majority: group must be 1 or divide the {rows} rows, and goes without weights, "
            f"got {group}"
        )
    code = policies.code("majority", "ties", ties, policies.TIES)
    seed, step, _, first = keys.random("majority", **key, rank=0)
    out, *planes = layout.planes_out("majority", out, nbytes, ties == "zero", False, s)
    w, _weights = (0, None) if weights is None else _weights_of("majority", weights, s, rows)
    bits = (seed, step, policies.TIE_STREAM, first)
    return out, majority_rows(s.kernels, of_stack, planes, code, bits, w, group)


def majority_rows(
    kernels: Any,
    stack: layout.Stack,
    out: Any,
    ties: int,
    key: keys.Random,
    weights: int = 0,
    group: int = 1,
) -> Any:
    """Writes a majority: coordinates that tied. Checks nothing.

    ``kernels``: ``View.kernels`` of the stack. ``out``: addresses of the sign plane and of the mask
    plane or 0. ``ties``: its code. ``key``: with policies.TIE_STREAM. ``weights``: address of
    uint32 (rows,), or 0.
    """
    work = stack[3] * ((stack[4] + 7) // 8)
    n_threads = 1 if work < threads.WORTH_A_THREAD else threads.count()
    return kernels.majority(*stack, weights, group, *out, ties, key, n_threads)


def tally(stack: Any, *, length: int | None = None, weights: Any = None, out: Any = None) -> Any:
    """Counts the negative votes of each coordinate, as count planes.

    Args:
        stack: Planes as ``majority`` takes them.
        length: Coordinates, default 8 B.
        weights: One a row, as ``majority`` takes them.
        out: uint8 array to write to, C-contiguous.

    Returns:
        uint8 (k, B): plane j holds bit j of the counts, k the bit length of the sum of weights (of
        the number of rows without them). Masked stacks: (2, k, B), negative votes, then positive
        ones. Padding bits are 0. Nodes of a hierarchical vote exchange these planes.

    Raises:
        TypeError, ValueError: An argument does not fit.

    Example:
        >>> import numpy as np
        >>> from mpisign import planes
        >>> planes.tally(np.array([[0b01], [0b11], [0b11]], dtype=np.uint8)).tolist()  # 3, 2
        [[1], [3]]
    """
    s, of_stack, kinds, nbytes = layout.stack_view("tally", stack, length)
    rows = of_stack[3]
    w, of_rows = (0, None) if weights is None else _weights_of("tally", weights, s, rows)
    k = max(1, (rows if of_rows is None else int(of_rows.sum())).bit_length())
    wanted: tuple[int, ...] = (2, k, nbytes) if kinds == 2 else (k, nbytes)
    if out is None:
        out = arrays.empty(wanted, "uint8", like=s)
    o = arrays.view_bytes("tally", "out", out, writable=True)
    layout.same_device("tally", "out", o, s)
    if o.shape != wanted or not o.contiguous:
        raise ValueError(f"tally: out must be C-contiguous of shape {wanted}, got {o.shape}")
    positives = o.address + k * nbytes if kinds == 2 else 0
    n_threads = threads.for_work(rows * nbytes)
    s.kernels.tally(*of_stack, w, k, o.address, positives, nbytes, n_threads)
    return out


def group_distances(stack: Any, *, group: int, length: int | None = None) -> np.ndarray[Any, Any]:
    """Counts the coordinates of each row that differ from the majority of its group.

    A coordinate counts where the row votes and its group has a majority, not where the row
    abstains or the group ties. Padding bits never count.

    Args:
        stack: Planes as ``majority`` takes them.
        group: Consecutive rows of a group; must divide n. A row alone has distance 0.
        length: Coordinates, default 8 B.

    Returns:
        NumPy int64 (n,), also for a GPU, which is waited for.

    Raises:
        TypeError, ValueError: An argument does not fit.

    Example:
        >>> import numpy as np
        >>> from mpisign import planes
        >>> planes.group_distances(np.array([[7], [7], [1]], dtype=np.uint8), group=3)
        array([0, 0, 2])
    """
    s, of_stack, _, nbytes = layout.stack_view("group_distances", stack, length)
    rows = of_stack[3]
    if group < 1 or rows % group:
        raise ValueError(f"group_distances: group must divide the {rows} rows, got {group}")
    if group == 1 or of_stack[4] == 0:
        return np.zeros(rows, dtype=np.int64)
    counts = s.kernels.group_distances(*of_stack, group, threads.for_work(rows * nbytes))
    if isinstance(counts, bytes):
        return np.frombuffer(counts, dtype=np.int64).copy()
    return arrays.host(counts)


def _weights_of(function: str, weights: Any, s: arrays.View, rows: int) -> tuple[int, Any]:
    """(address in the stack's memory, array) of the rows' weights."""
    of_rows = integer_weights(function, weights, rows)
    return arrays.address_like(of_rows, s), of_rows
