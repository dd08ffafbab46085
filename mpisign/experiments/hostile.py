"""Hostile ranks of a training: the batches they learn from and the gradients they send."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

import mpisign
from mpisign.compressors import Compressor, Detox, Signum
from mpisign.compressors.robust import Robust
from mpisign.experiments.cell import Cell
from mpisign.experiments.tasks.base import Task

if TYPE_CHECKING:
    from mpisign.attacks import Adversaries
    from mpisign.detox import Groups

_STREAM = 7  # of the generator's seed: neither batches nor noise are drawn from it


class Hostile:
    """Backward passes with the attack of ``cell``; ``seconds``: what the attack took so far."""

    def __init__(
        self,
        cell: Cell,
        comm: mpisign.Communicator | None,
        task: Task,
        compressor: Compressor | None = None,
        groups: Groups | None = None,
        *,
        eager: bool = False,
        alike: bool = False,
    ) -> None:
        self.seconds = 0.0
        self._groups, self._draw, self._eager = groups, 0, eager
        self.adversaries: Adversaries | None = None
        if comm is None or cell.attack is None or not cell.adversaries:
            return
        from mpisign.attacks import Adversaries, by_name

        inner = compressor.inner if isinstance(compressor, Detox) else compressor
        drawn = by_name(cell.attack, cell.adversaries, [cell.seed, _STREAM]) if alike else None
        self.adversaries = Adversaries(
            drawn or cell.attack,
            cell.hostile,
            comm,
            seed=cell.seed,
            momentum=inner.momentum if isinstance(inner, Signum | Robust) else 0.0,
        )
        task.spoil = self.adversaries.batch

    def backward(self, task: Task, step: int) -> torch.Tensor:
        """Computes the gradients of ``step``, false ones on hostile ranks. Collective."""
        if self.adversaries is None:
            return task.backward(step)
        parameters = [p for _, p in task.named]
        if not self._eager:
            loss = task.backward(step)
        else:  # gradients leave as soon as backward() has them: none may before they are replaced
            loss = task.loss(step)
            for p, g in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                p.grad = g
        start = time.perf_counter()
        if self._groups is not None and self._groups.draw != self._draw:
            self._draw = self._groups.draw
            self.adversaries.forget()
        self.adversaries.gradients(parameters)
        self.seconds += time.perf_counter() - start
        if self._eager:
            replaced = [p.grad for p in parameters]
            for p in parameters:
                p.grad = None
            torch.autograd.backward(parameters, replaced)  # the hooks get them as they are
        return loss.detach()

    def success(self, net: torch.nn.Module) -> float | None:
        """How often ``net`` does what a backdoor is for, in [0, 1]; None for other attacks."""
        accuracy = getattr(getattr(self.adversaries, "attack", None), "accuracy", None)
        return None if accuracy is None else float(accuracy(net))
