"""signSGD: the sign of the gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mpisign.compressors.base import Compressor, State

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Sign(Compressor):
    """sign(g), by majority vote; no state.

    Source: Bernstein et al. 2018, signSGD: compressed optimisation, Algorithm 1.

    Args:
        zeros, nan, ties: As ``Compressor``.

    Example:
        >>> import torch
        >>> Sign().compress(torch.tensor([0.5, -2.0]), {}).sign()
        tensor([ 1., -1.])
    """

    def compress(self, grad: torch.Tensor, state: State) -> torch.Tensor:
        return grad
