"""The hostile ranks of a training: what they learn from, and what they send."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
from torch import nn

import mpisign
from mpisign.training import data
from mpisign.training.settings import Settings
from mpisign.training.ways import Way

if TYPE_CHECKING:
    from mpisign.attacks import Adversaries
    from mpisign.detox import Groups


class Attacked:
    """Backward passes of one way to train, of which some ranks are hostile, or none.

    ``comm``: between all ranks, None where there are no hostile ones. ``groups``: of those that
    vote. ``seconds``: what the attack
    has taken, a side channel among it that no real attack would wait for.
    """

    def __init__(
        self,
        way: Way,
        settings: Settings,
        comm: mpisign.Communicator | None,
        groups: Groups | None = None,
    ) -> None:
        self.seconds = 0.0
        self._groups = groups
        self._draw = 0
        self._eager = way.eager
        self._adversaries: Adversaries | None = None
        if comm is not None and settings.adversaries:
            from mpisign.attacks import Adversaries

            self._adversaries = Adversaries(
                settings.attack,
                settings.hostile(comm.size),
                comm,
                seed=settings.seed,
                momentum=settings.rank_momentum if way.votes else 0.0,
            )

    @property
    def hostile(self) -> bool:
        """Whether any rank is."""
        return self._adversaries is not None

    def batch(self, batch: tuple[data.Images, data.Labels]) -> tuple[data.Images, data.Labels]:
        """What this rank learns from."""
        return batch if self._adversaries is None else self._adversaries.batch(*batch)

    def success(self, net: nn.Module) -> float | None:
        """How often ``net`` does what a backdoor is for, in [0, 1]; None for other attacks."""
        accuracy = getattr(getattr(self._adversaries, "attack", None), "accuracy", None)
        return None if accuracy is None else float(accuracy(net))

    def backward(self, loss: torch.Tensor, net: nn.Module) -> None:
        """``loss.backward()``, by which hostile ranks get other gradients. Collective."""
        if self._adversaries is None:
            loss.backward()
            return
        parameters = list(net.parameters())
        if not self._eager:
            loss.backward()
        else:  # gradients leave as soon as backward() has them: none may before they are replaced
            for p, g in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                p.grad = g
        start = time.perf_counter()
        if self._groups is not None and self._groups.draw != self._draw:
            self._draw = self._groups.draw
            self._adversaries.forget()
        self._adversaries.gradients(parameters)
        self.seconds += time.perf_counter() - start
        if self._eager:
            replaced = [p.grad for p in parameters]
            for p in parameters:
                p.grad = None
            torch.autograd.backward(parameters, replaced)  # hands them to the hooks as they are
