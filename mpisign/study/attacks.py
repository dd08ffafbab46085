"""What hostile ranks make of their gradients, before anything is compressed."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from mpisign.training.settings import ATTACKS

_STREAM = 7  # of the generator's seed: no batch and no noise is drawn from it


class Attack:
    """One hostile rank. "sign-flip": -g; "reverse": -100 g; "random": Gaussian, as long as g."""

    def __init__(self, name: str, seed: int, rank: int) -> None:
        self._factor = ATTACKS.get(name)  # type: ignore[call-overload]
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
