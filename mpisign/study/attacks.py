"""What hostile ranks make of their batches and gradients, before anything is compressed."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch

import mpisign
from mpisign.attacks import Adversaries, by_name
from mpisign.compressors import Compressor
from mpisign.compressors.detox import Detox
from mpisign.study.cell import Cell
from mpisign.study.tasks.base import Task

#: What a gradient is multiplied by.
_FACTORS = {"sign-flip": -1.0, "reverse": -100.0}
#: The attacks of this file: results of before ``mpisign.attacks`` are of their bits.
OWN = (*_FACTORS, "random")
_STREAM = 7  # of the generator's seed: no batch and no noise is drawn from it

Spoil = Callable[[Iterable[torch.Tensor]], None]


def hostile(
    cell: Cell, comm: mpisign.Communicator, task: Task, compressor: Compressor
) -> Spoil | None:
    """What to call with all parameters after each ``backward()``, or None; may spoil batches too.

    Collective where the attack looks at honest ranks' gradients; of a compressor with momentum it
    looks at their momenta. What hostile ranks draw they draw alike: of one batch they make the same
    poisoned one, and own a group in which they are the most.
    """
    if cell.attack is None:
        return None
    if cell.attack in OWN:
        own = cell.hostile(comm.rank)
        return Attack(cell.attack, cell.seed, comm.rank) if own else None
    sends = compressor.inner if isinstance(compressor, Detox) else compressor
    adversaries = Adversaries(
        by_name(cell.attack, cell.adversaries, [cell.seed, _STREAM]),
        [*filter(cell.hostile, range(cell.ranks))],
        comm,
        momentum=getattr(sends, "momentum", 0.0),
    )
    task.spoil = adversaries.batch
    return adversaries.gradients


class Attack:
    """One hostile rank. "sign-flip": -g; "reverse": -100 g; "random": Gaussian, as long as g."""

    def __init__(self, name: str, seed: int, rank: int) -> None:
        self._factor = _FACTORS.get(name)
        self._rng = np.random.default_rng([seed, rank, _STREAM])

    @torch.no_grad()
    def __call__(self, parameters: Iterable[torch.Tensor]) -> None:
        """Changes every gradient in place."""
        for p in parameters:
            if p.grad is None:
                continue
            if self._factor is not None:
                p.grad.mul_(self._factor)
                continue
            noise = torch.from_numpy(self._rng.standard_normal(p.shape)).to(p.dtype)
            p.grad.copy_(noise * p.grad.square().mean().sqrt())
