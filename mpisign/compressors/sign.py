"""signSGD: the sign of the gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mpisign.compressors.base import Compressor, State

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Sign(Compressor):
    """sign(g), no state (Bernstein et al. 2018, signSGD: compressed optimisation, Algorithm 1)."""

    def compress(self, grad: torch.Tensor, state: State) -> torch.Tensor:
        return grad
