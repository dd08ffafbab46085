"""What must be alike on all ranks before a bucket travels, and what may stop one of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mpisign import arrays
from mpisign.collectives.agreement import Agreed
from mpisign.collectives.line import Line
from mpisign.collectives.vote import ReplicaDigest
from mpisign.gradients.settings import state_of
from mpisign.rounds.member import Member
from mpisign.transports.base import Steps


def check_member(function: str, m: Member, length: int) -> None:
    """TypeError, ValueError for what cannot travel; ``length``: coordinates of its place."""
    if m.parameter.numel() != length:
        raise ValueError(f"{m.name!r} has another size than when it was wrapped")
    if m.grad is None:
        return
    arrays.view_floats(function, f"the gradient of {m.name!r}", m.grad)
    if any(s == 0 and n > 1 for s, n in zip(m.grad.stride(), m.grad.shape, strict=True)):
        raise ValueError(f"the gradient of {m.name!r} is an expanded view: clone it")


def digest_of(members: Sequence[Member], optimizer: torch.optim.Optimizer | None) -> bytes:
    """32 bytes over all parameters by name, and over what ``optimizer`` keeps of each."""
    digest = ReplicaDigest("parameters")
    for m in sorted(members, key=lambda m: m.name):
        kept = [] if optimizer is None else state_of(optimizer, m.parameter)
        for x in (m.parameter, *kept):
            if isinstance(x, torch.Tensor):
                flat = x.detach().cpu().contiguous().view(-1)
                digest.update(flat.view(torch.uint8).numpy())
            else:
                digest.update(repr(x).encode())
    return digest.field()


def present_anywhere(line: Line, agreed: Agreed, present: Any) -> Steps[Any]:
    """The members that have a gradient on any rank: uint8 (members,)."""
    if agreed.same_presence:
        return present.copy()
    rows = np.empty((line.size, len(present)), dtype=np.uint8)
    yield line.allgather(present, rows)
    return rows.max(axis=0)
