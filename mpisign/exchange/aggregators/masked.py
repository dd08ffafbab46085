"""Buckets in which a rank says nothing of what its gradient is zero for: see ``skip.rule_for``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mpisign import planes


def silence_zeros(grads: Sequence[torch.Tensor], out: Any, offsets: Sequence[int]) -> None:
    """Takes coordinates whose gradient is zero out of the planes ``out`` (2, B), sign and mask.

    A momentum or a residual goes on where there is no gradient, and what has only a sign moves the
    parameter by a whole learning rate: a row that one step looked up would drift for hundreds. Rows
    of an embedding are therefore moved by the ranks that look them up, in the step in which they
    do. Momenta decay meanwhile, as their equation says.
    """
    for g, start in zip(grads, offsets, strict=True):
        ballots, _, _ = planes.pack_many([g.detach()], zeros="abstain", nan="abstain")
        there = ballots[1] if isinstance(out, torch.Tensor) else ballots[1].numpy()
        out[:, start : start + len(there)] &= there


def keep_where_zero(
    grad: torch.Tensor, before: torch.Tensor | None, residual: torch.Tensor
) -> None:
    """``residual`` as it was ``before`` where the gradient is zero: nothing of it was sent."""
    zero = grad.detach() == 0
    residual.copy_(
        residual.masked_fill(zero, 0) if before is None else before.where(zero, residual)
    )
