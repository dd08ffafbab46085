"""Rounds of local steps: ranks walk by themselves, then agree on where they have come to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mpisign import planes
from mpisign.compressors.base import Compressor
from mpisign.exchange.parameter_slot import ParameterSlot


class LocalSteps:
    """Jin et al. 2023, Magnitude matters, Algorithm 2: tau steps on sparsign(g), then their sum.

    In each of the ``count`` steps of a round a rank moves by sparsign(g; ``budget``) alone: with
    the optimizer's learning rate and by its step, or, with ``rate``, here, and the optimizer is
    left no gradient to step on. In the last the parameters go back to the round's beginning, and
    the sum of its sparsigns is what the rank sends. A rank without gradients stays where it is.

    State: "start", the parameters then, and "sum", float32. In the middle of a round ranks hold
    parameters of their own; what else the optimizer kept then, a momentum, would differ for ever,
    so that it must keep nothing.
    """

    def __init__(
        self,
        slots: Sequence[ParameterSlot],
        count: int,
        budget: float,
        seed: int,
        rate: float | None = None,
    ) -> None:
        self.slots = slots
        self.count = count
        self._budget = budget
        self._seed = seed
        self._rate = rate
        self.done = 0  # in this round

    @torch.no_grad()
    def take(self, step: int, rank: int) -> bool:
        """One local step; True if it was the round's last, and ``slot.grad`` is to be sent.

        ``step``: of the round. Else ``slot.grad`` is what the optimizer is to move by, or None.
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
            if self._rate is None or self.done == self.count - 1:
                m.grad.copy_(move)
            else:
                m.parameter.add_(move, alpha=-self._rate)
                m.grad = m.parameter.grad = None
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


def local_steps_of(
    compressor: Compressor, slots: Sequence[ParameterSlot], seed: int
) -> LocalSteps | None:
    """The rounds that ``compressor`` asks for; None: every step is an exchange."""
    if compressor.local_steps == 1:
        return None
    c: Any = compressor  # who has local steps has a budget and a rate for them
    return LocalSteps(slots, c.local_steps, c.budget_local, seed, c.local_lr)


def check_optimizer(
    function: str,
    optimizer: torch.optim.Optimizer,
    compressor: Compressor,
    overlap: bool = False,
) -> None:
    """ValueError for an optimizer whose own state would differ for ever after steps of one rank."""
    if compressor.local_steps == 1:
        return
    plain = isinstance(optimizer, torch.optim.SGD)
    if not plain or any(g["momentum"] for g in optimizer.param_groups):
        raise ValueError(
            f"{function}: local steps need torch.optim.SGD without momentum, "
            f"got {type(optimizer).__name__}{' with momentum' if plain else ''}"
        )
    if getattr(compressor, "local_lr", None) and any(g["maximize"] for g in optimizer.param_groups):
        raise ValueError(f"{function}: local_lr goes with maximize=False, got True")
    if overlap:
        raise ValueError(f"{function}: overlap must be False with local steps, got True")
