"""How far each row of a stack is from the vote of its group."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpisign.backend import threads
from mpisign.planes import layout


def group_distances(stack: Any, *, group: int, length: int | None = None) -> np.ndarray[Any, Any]:
    """How many coordinates of each row differ from the majority of its group.

    ``stack``, ``length``: as ``majority`` takes them. ``group``: r consecutive rows are a group, as
    there; n makes one group of all. Returns NumPy int64 (n,), on a GPU too, whose work is waited
    for. A coordinate counts where the row votes and its group has a majority: not where the row
    abstains or the group ties. A row alone (``group=1``) is its own majority: all 0.

    Padding bits never count. Raises TypeError, ValueError for arguments that do not fit.
    """
    s, shape, length = layout.stack_view("group_distances", stack, length)
    rows, nbytes = shape[0], shape[-1]
    if group < 1 or rows % group:
        raise ValueError(f"group_distances: group must divide the {rows} rows, got {group}")
    if group == 1 or length == 0:
        return np.zeros(rows, dtype=np.int64)
    counts = s.kernels.group_distances(
        s.address,
        *layout.strides_of(s, shape),
        rows,
        length,
        group,
        threads.for_work(rows * nbytes),
    )
    if isinstance(counts, bytes):
        return np.frombuffer(counts, dtype=np.int64).copy()
    on_host: np.ndarray[Any, Any] = counts.cpu().numpy() if s.is_torch else counts.get()
    return on_host
