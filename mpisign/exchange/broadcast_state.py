"""State that must be equal on all ranks, broadcast to ranks that may lack it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mpisign.exchange.parameter_slot import ParameterSlot
from mpisign.transports.base import Bytes, Pending, Steps
from mpisign.transports.tagged import TaggedTransport


def broadcast_state(
    wire: TaggedTransport, members: Sequence[ParameterSlot], keys: Sequence[str]
) -> Steps[None]:
    """Rank 0's tensors under ``keys`` become everyone's: float32, of their parameters' shapes.

    After a start, a checkpoint or a change of ranks: what came from there may lack on a new rank,
    or be another's. Wire: a byte for each member and key, 1 = rank 0 has it, then these tensors.
    """
    slots = [(m, key) for m in members for key in keys]
    held = np.array([key in m.state for m, key in slots], dtype=np.uint8)
    yield _broadcast(wire, held)
    there = [slot for slot, has in zip(slots, held, strict=True) if has]
    lengths = [m.parameter.numel() for m, _ in there]
    flat = np.zeros(sum(lengths), dtype=np.float32)
    parts = np.split(flat, np.cumsum(lengths)[:-1]) if there else []
    if wire.rank == 0:
        for (m, key), part in zip(there, parts, strict=True):
            part[...] = m.state[key].detach().cpu().reshape(-1).numpy()
    yield _broadcast(wire, flat.view(np.uint8))
    for m, key in slots:
        m.state.pop(key, None)
    for (m, key), part in zip(there, parts, strict=True):
        tensor = torch.from_numpy(part.copy()).view(m.parameter.shape)
        m.state[key] = tensor.to(m.parameter.device)


@torch.no_grad()
def broadcast_tensors(wire: TaggedTransport, tensors: Sequence[torch.Tensor]) -> Steps[None]:
    """Rank 0's values become everyone's; shapes and dtypes are the same on all ranks.

    Wire: of each tensor its bytes, along a tree: a rank sends at most ceil(log2 p) times.
    """
    for x in tensors:
        host = x.detach().cpu().contiguous()
        data = host.view(-1).view(torch.uint8).numpy()
        have = 1  # ranks that have it: the first ones
        while have < wire.size:
            to, of = wire.rank + have, wire.rank - have
            sends = [(to, data)] if wire.rank < have and to < wire.size else []
            yield wire.exchange(sends, [(of, data)] if 0 <= of < have else [])
            have *= 2
        if wire.rank:
            x.copy_(host)


def _broadcast(wire: TaggedTransport, data: Bytes) -> Pending:
    if wire.rank == 0:
        return wire.exchange([(r, data) for r in wire.others], [])
    return wire.exchange([], [(0, data)])
