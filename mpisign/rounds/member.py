"""One parameter of a model as the rounds see it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mpisign.compressors.base import State

if TYPE_CHECKING:
    import torch


@dataclass(eq=False, slots=True)
class Member:
    """A parameter, the compressor's state for it, and its gradient in this step.

    ``grad``: this rank's gradient, None where it has none; a round writes the aggregate into it, or
    makes it where other ranks alone had one. ``rate``: the learning rate of its parameter group, 1
    where the front end knows none.
    """

    name: str
    parameter: torch.Tensor
    state: State = field(default_factory=dict)
    grad: torch.Tensor | None = None
    rate: float = 1.0

    def target(self) -> torch.Tensor:
        """Where the aggregate goes: ``grad``, made if there is none."""
        import torch

        if self.grad is None:
            self.grad = torch.empty_like(self.parameter, memory_format=torch.contiguous_format)
        return self.grad.detach()
