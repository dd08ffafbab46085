"""Signum: the sign of the momentum."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mpisign.compressors.base import Compressor, State

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Signum(Compressor):
    """m = b m + (1 - b) g; sign(m) (Bernstein et al. 2019, majority vote, Algorithm 1).

    ``state["momentum"]`` has the gradient's shape and dtype and never leaves the rank.
    """

    momentum: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.momentum < 1.0:
            raise ValueError(f"Signum: momentum must be in [0, 1), got {self.momentum!r}")

    def voted_on(self, grad: torch.Tensor, state: State) -> torch.Tensor:
        import torch

        m = state.get("momentum")
        if m is None:
            m = state["momentum"] = torch.zeros_like(grad, requires_grad=False)
        if self.nan == "raise":
            # The vote will raise; the momentum must not remember why.
            if not math.isfinite(grad.sum()) and bool(grad.isnan().any()):
                return grad
            return m.mul_(self.momentum).add_(grad.detach(), alpha=1.0 - self.momentum)
        # A NaN abstains this once; in the momentum it would abstain for ever.
        new = m * self.momentum + (1.0 - self.momentum) * grad.detach()
        m.copy_(torch.where(new.isnan(), m, new))
        return new

    def voted_on_without_gradient(self, parameter: torch.Tensor, state: State) -> torch.Tensor:
        m = state.get("momentum")
        return super().voted_on_without_gradient(parameter, state) if m is None else m
