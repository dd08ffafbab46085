"""One count of steps for all ranks, where some resume from a checkpoint and others are new."""

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


def sync_step_count(
    wire: TaggedTransport, steps: int, options: int = 0, parameters: int = 0
) -> Steps[int]:
    """The largest of the ranks' counts of steps: a new rank, or one that loaded nothing, has 0.

    ``options``, ``parameters``: 64 bits of a digest, 0 where not taken; only warns if some differ.
    Wire: the three, u64 little-endian, in one allgather.
    """
    rows = np.empty((wire.size, 24), dtype=np.uint8)
    own = np.array([steps, options, parameters], dtype="<u8")
    yield wire.allgather(own.view(np.uint8), rows)
    counts = rows.view("<u8")
    for column, what in _WHAT.items():
        groups: dict[int, list[int]] = {}
        for rank, digest in enumerate(counts[:, column].tolist()):
            if digest:
                groups.setdefault(digest, []).append(rank)
        if len(groups) > 1:
            sides = " against ".join(name_ranks(r) for r in groups.values())
            warnings.warn(f"step: ranks differ in {what}: {sides}", stacklevel=2)
    return int(counts[:, 0].max())
