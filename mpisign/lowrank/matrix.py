"""``Matrix``: one weight as matrices, and their factors."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import nn


def rank_of(rank_ratio: float, rows: int, columns: int) -> int:
    """The factors' rank: ``rank_ratio`` of the full rank, rounded down, at least 1."""
    return max(1, math.floor(rank_ratio * min(rows, columns) + 1e-9))


@dataclass(eq=False)
class Matrix:
    """A weight of ``parts`` matrices, one below the other: 3 of an attention, 4 of an LSTM.

    A kernel (out, in, k, k) is the matrix (out, in k k). ``name``: among the model's parameters.
    ``u``, ``v``: the factors (parts, rows, rank) and (parts, rank, columns), once they are known.
    ``thin``: the pairs of parameters that took the weight's place, one, or one for each part.
    """

    name: str
    weight: nn.Parameter
    parts: int
    rank: int
    u: torch.Tensor = field(init=False)
    v: torch.Tensor = field(init=False)
    thin: list[tuple[nn.Parameter, nn.Parameter]] = field(default_factory=list)

    @classmethod
    def of(cls, name: str, weight: nn.Parameter, rank_ratio: float, parts: int = 1) -> Matrix:
        """With room for the factors."""
        rows, columns = len(weight) // parts, weight[0].numel()
        matrix = cls(name, weight, parts, rank_of(rank_ratio, rows, columns))
        matrix.u = weight.new_empty(parts, rows, matrix.rank).detach()
        matrix.v = weight.new_empty(parts, matrix.rank, columns).detach()
        return matrix

    @property
    def parameters(self) -> int:
        """Of the factors."""
        return self.u.numel() + self.v.numel()

    def blocks(self, x: torch.Tensor) -> torch.Tensor:
        """A tensor of the weight's shape as (parts, rows, columns)."""
        return x.reshape(self.parts, -1, self.v.shape[-1])

    def decompose(self) -> None:
        """U sqrt(S) and sqrt(S) V' of the largest singular values; computed in float32 at least."""
        x = self.weight.detach()
        wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
        u, s, v = torch.linalg.svd(self.blocks(wide), full_matrices=False)
        root = s[:, : self.rank].sqrt()
        self.u.copy_(u[:, :, : self.rank] * root[:, None, :])
        self.v.copy_(v[:, : self.rank] * root[:, :, None])
