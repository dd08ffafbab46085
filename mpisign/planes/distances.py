"""How far each row of a stack is from the vote of its group."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpisign.planes import layout
from mpisign.planes.vote import majority


def group_distances(stack: Any, *, group: int, length: int | None = None) -> np.ndarray[Any, Any]:
    """How many coordinates of each row differ from the majority of its group.

    ``stack``, ``length``: as ``majority`` takes them. ``group``: r consecutive rows are a group, as
    there; n makes one group of all. Returns NumPy int64 (n,), on a GPU too, whose work is waited
    for. A coordinate counts where the row votes and its group has a majority: not where the row
    abstains or the group ties. A row alone (``group=1``) is its own majority: all 0.

    Raises TypeError, ValueError for arguments that do not fit.
    """
    _, shape, length = layout.stack_view("group_distances", stack, length)
    rows = shape[0]
    if group < 1 or rows % group:
        raise ValueError(f"group_distances: group must divide the {rows} rows, got {group}")
    stack = layout.stacked("group_distances", stack)
    distances = np.zeros(rows, dtype=np.int64)
    if group == 1 or length == 0:
        return distances
    for first in range(0, rows, group):
        members = stack[first : first + group]
        vote, verdict = np.asarray(majority(members, length=length, ties="zero"))
        for row, planes in enumerate(np.asarray(members), first):
            sign, mask = planes if planes.ndim == 2 else (planes, verdict)
            distances[row] = int(np.bitwise_count((sign ^ vote) & verdict & mask).sum())
    return distances
