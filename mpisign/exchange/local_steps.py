"""Rounds of local steps: ranks walk by themselves, then agree on where they have come to."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mpisign import planes
from mpisign.exchange.parameter_slot import ParameterSlot


class LocalSteps:
    """Jin et al. 2023, Magnitude matters, Algorithm 2: tau steps on sparsign(g), then their sum.

    In each of the ``count`` steps of a round a rank moves by sparsign(g; ``budget``) alone, with
    the optimizer's learning rate. In the last the parameters go back to the round's beginning, and
    the sum of its sparsigns is what the rank sends. State: "start", the parameters then, and "sum",
    float32. In the middle of a round ranks hold parameters of their own; what else the optimizer
    kept then, a momentum, would differ for ever, so that it must keep nothing.
    """

    def __init__(
        self, slots: Sequence[ParameterSlot], count: int, budget: float, seed: int
    ) -> None:
        self.slots = slots
        self.count = count
        self._budget = budget
        self._seed = seed
        self.done = 0  # in this round

    @torch.no_grad()
    def take(self, step: int, rank: int) -> bool:
        """One local step; True if it was the round's last, and ``slot.grad`` is to be sent.

        ``step``: of the round. Else ``slot.grad`` is what the optimizer is to move by.
        """
        number = step * self.count + self.done
        for i, m in enumerate(self.slots):
            if self.done == 0:
                m.state["start"] = m.parameter.detach().clone()
                m.state.pop("sum", None)
            if m.grad is None:
                continue
            seed = (self._seed + 1 + i) % (1 << 64)
            rows, _, nans = planes.pack_sparsign(
                m.grad.detach(), budget=self._budget, seed=seed, step=number, rank=rank
            )
            move = planes.unpack(rows, tuple(m.grad.shape))
            if "sum" not in m.state:
                m.state["sum"] = torch.zeros(m.parameter.shape, device=m.parameter.device)
            m.state["sum"] += move
            if int(nans):  # told to all ranks when the sum is sent, as they all must raise
                m.state["sum"][m.grad.isnan()] = torch.nan
            m.grad.copy_(move)
        self.done += 1
        if self.done < self.count:
            return False
        self.done = 0
        for m in self.slots:
            m.parameter.copy_(m.state.pop("start"))
            total = m.state.pop("sum", None)
            if total is not None:
                m.target().copy_(total)
        return True


def check_optimizer(function: str, optimizer: torch.optim.Optimizer, overlap: bool = False) -> None:
    """ValueError for an optimizer whose own state would differ for ever after steps of one rank."""
    plain = isinstance(optimizer, torch.optim.SGD)
    if not plain or any(g["momentum"] for g in optimizer.param_groups):
        raise ValueError(
            f"{function}: local steps need torch.optim.SGD without momentum, "
            f"got {type(optimizer).__name__}{' with momentum' if plain else ''}"
        )
    if overlap:
        raise ValueError(f"{function}: overlap must be False with local steps, got True")
