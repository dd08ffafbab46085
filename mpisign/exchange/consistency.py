"""What must be equal on all ranks before a bucket travels, and what may stop one of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mpisign.backend import arrays
from mpisign.engine.replicas import ParameterDigest
from mpisign.exchange.optimizer_options import state_of
from mpisign.exchange.parameter_slot import ParameterSlot
from mpisign.transports.base import Steps
from mpisign.transports.tagged import TaggedTransport

_FLOATS = {getattr(torch, name) for name in arrays.FLOATS}


def check_parameters(function: str, slots: Sequence[ParameterSlot]) -> None:
    """TypeError for parameters whose gradients can never travel, by their kind.

    All front ends check their parameters here, in the first header of the first step: what one of
    them is given by torch may hide it (DDP shows half of a complex gradient's memory as floats).
    """
    for s in slots:
        p = s.parameter.detach()
        if not s.parameter.requires_grad and not p.is_meta:
            continue
        try:
            arrays.view_floats(function, f"parameter {s.name!r}", p)
        except TypeError as error:
            if not p.is_complex():
                raise
            raise TypeError(
                f"{error} (make it a float parameter, and in forward() take torch.view_as_complex)"
            ) from None


def check_slots(function: str, slots: Sequence[ParameterSlot], lengths: Sequence[int]) -> None:
    """TypeError, ValueError for gradients that cannot travel; ``lengths``: of their places."""
    for s, length in zip(slots, lengths, strict=True):
        if s.parameter.numel() != length:
            raise ValueError(f"{s.name!r} has another size than when it was wrapped")
        g = s.grad
        if g is None or (g.is_cpu and g.dtype in _FLOATS and g.is_contiguous() and g.data_ptr()):
            continue
        arrays.view_floats(function, f"the gradient of {s.name!r}", g)
        if any(step == 0 and n > 1 for step, n in zip(g.stride(), g.shape, strict=True)):
            raise ValueError(f"the gradient of {s.name!r} is an expanded view: clone it")


def digest_of(members: Sequence[ParameterSlot], optimizer: torch.optim.Optimizer | None) -> bytes:
    """32 bytes over all parameters by name, and over what ``optimizer`` keeps of each."""
    digest = ParameterDigest()
    for m in sorted(members, key=lambda m: m.name):
        kept = [] if optimizer is None else state_of(optimizer, m.parameter)
        for x in (m.parameter, *kept):
            if isinstance(x, torch.Tensor) and (x.is_meta or x.layout is not torch.strided):
                digest.update(f"{x.dtype} {tuple(x.shape)}".encode())  # a frozen one
            elif isinstance(x, torch.Tensor):
                flat = x.detach().cpu().contiguous().view(-1)
                digest.update(flat.view(torch.uint8).numpy())
            else:
                digest.update(repr(x).encode())
    return digest.field()


def present_anywhere(wire: TaggedTransport, present: Any) -> Steps[Any]:
    """The slots that have a gradient on any rank: uint8 (slots,)."""
    rows = np.empty((wire.size, len(present)), dtype=np.uint8)
    yield wire.allgather(present, rows)
    return rows.max(axis=0)
