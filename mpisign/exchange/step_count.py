"""Ranks that begin together, though some come from a checkpoint and others from nowhere."""

from __future__ import annotations

import warnings

import numpy as np

from mpisign.engine.agreement import name_ranks
from mpisign.transports.base import Steps
from mpisign.transports.tagged import TaggedTransport

_WHAT = {
    1: "options of the optimizer, such as learning rates (hvd.broadcast_optimizer_state)",
    2: "parameters (hvd.broadcast_parameters)",
}


def meet(wire: TaggedTransport, steps: int, options: int = 0, parameters: int = 0) -> Steps[int]:
    """The largest rank's count of steps: a rank that has just come, or has not loaded, has none.

    ``options``, ``parameters``: 64 bits of a digest, 0 where not taken; warns, and leaves it at
    that, if some differ. Wire: the three, u64 little-endian, in one allgather.
    """
    rows = np.empty((wire.size, 24), dtype=np.uint8)
    own = np.array([steps, options, parameters], dtype="<u8")
    yield wire.allgather(own.view(np.uint8), rows)
    told = rows.view("<u8")
    for column, what in _WHAT.items():
        groups: dict[int, list[int]] = {}
        for rank, digest in enumerate(told[:, column].tolist()):
            if digest:
                groups.setdefault(digest, []).append(rank)
        if len(groups) > 1:
            sides = " against ".join(name_ranks(r) for r in groups.values())
            warnings.warn(f"step: ranks differ in {what}: {sides}", stacklevel=2)
    return int(told[:, 0].max())
