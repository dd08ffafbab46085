"""One parameter of a model as the exchange sees it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mpisign.compressors.base import State

if TYPE_CHECKING:
    import torch


@dataclass(eq=False, slots=True)
class ParameterSlot:
    """A parameter, the compressor's state for it, and its gradient in this step.

    ``grad``: this rank's gradient, None where it has none; an aggregator writes the aggregate into
    it, or makes it where only other ranks had one. ``rate``: the learning rate of its parameter
    group, 1 where the front end knows none. ``version``: torch's, of ``grad`` when it was handed
    over or returned: a write in between would make the replicas diverge.
    """

    name: str
    parameter: torch.Tensor
    state: State = field(default_factory=dict)
    grad: torch.Tensor | None = None
    rate: float = 1.0
    version: int = 0

    def target(self) -> torch.Tensor:
        """Where the aggregate goes: ``grad``, made if there is none."""
        import torch

        if self.grad is None:
            self.grad = torch.empty_like(self.parameter)
        return self.grad.detach()

    def changed(self) -> bool:
        """Whether somebody wrote to ``grad`` since ``version``, as far as torch records.

        Slices of one tensor, as ``torch.stack`` makes gradients, have one version in common.
        """
        grad = self.grad
        if grad is None or grad.untyped_storage().nbytes() != grad.numel() * grad.element_size():
            return False
        return grad._version != self.version

    def match_strides(self) -> None:
        """Lays ``grad`` out in memory as ``parameter``, equal on all ranks.

        torch takes other kernels for other strides, which round 16-bit floats otherwise.
        """
        import torch

        usual = torch.empty_like(self.parameter)
        if self.grad is not None and self.grad.stride() != usual.stride():
            self.grad = usual.copy_(self.grad.detach())
