"""1-bit Adam: Adam on averages, then momenta at one bit a coordinate over a frozen variance."""

from __future__ import annotations

from typing import Any

import torch

from mpisign.exchange.skip import Rule
from mpisign.optim.arguments import check_steps
from mpisign.optim.arithmetic import denominator_of, mix, move
from mpisign.optim.base import CompressedOptimizer, Params


class OneBitAdam(CompressedOptimizer):
    """Adam on averaged gradients for ``freeze_step`` steps; then v stays, and m travels compressed.

    Until then, of the mean g of the ranks' gradients, without bias correction::

        m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  x -= lr (m / (sqrt(v) + eps) + wd x)

    From then on each rank has a momentum of its own gradient, m_i = b1 m + (1 - b1) g_i, and m is
    the two-sided compressed mean of all m_i (``mpisign.compressed_mean``). Coordinates whose v is
    zero when it is frozen, which never had a gradient, stay where they are. On one rank nothing is
    compressed. Gradients hold their mean after a step on averages.

    All ranks hold the same bits after every step: in the first step rank 0's parameters go to ranks
    that have others. Errors are saved with ``state_dict()``, which every rank saves for itself.
    Under DDP train the wrapped module, or in ``no_sync()``; a step raises where DDP averaged.

    Hyper-parameters mean what DeepSpeed 0.19.6's mean, whose first step moves nothing. Source: Tang
    et al. 2021, 1-bit Adam, Algorithm 1.

    Args:
        params: Parameters, groups, or ``model.named_parameters()``. A group may have the key
            ``exp_avg_mask``, a tensor of ones and zeros that is multiplied with the compressed m:
            zeros for rows that never have a gradient.
        lr: Learning rate.
        betas: b1 and b2.
        eps: Added to sqrt(v).
        weight_decay: wd, decoupled as AdamW's.
        freeze_step: Steps on averages; 15 to 25 percent of all.
        comm: What ``mpisign.Communicator`` takes, default the ranks that the launcher started.
        block: Coordinates that share a scale, a multiple of 256; None: a bucket.
        skip: As in ``mpisign.DistributedOptimizer``: vectors and small tensors travel in 16 bits,
            rows of embeddings without a gradient stay; None: all alike.
        seed: Of the random bits, equal on all ranks.
        bucket_size: Coordinates that travel together; 1: each tensor by itself.

    Raises:
        TypeError, ValueError: For invalid arguments.

    Example:
        >>> x = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = OneBitAdam([x], lr=0.1, betas=(0.0, 0.0), freeze_step=100)
        >>> x.grad = torch.tensor([4.0, -2.0])
        >>> optimizer.step()
        >>> x.data
        tensor([-0.1000,  0.1000])
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        freeze_step: int = 100_000,
        *,
        comm: Any = None,
        block: int | None = 4096,
        skip: str | Rule | None = "auto",
        seed: int = 0,
        bucket_size: int | None = None,
    ) -> None:
        freeze_step = check_steps("OneBitAdam", "freeze_step", freeze_step)
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "freeze_step": freeze_step,
            "step": 0,
        }
        how = {"comm": comm, "block": block, "skip": skip, "seed": seed, "bucket_size": bucket_size}
        super().__init__(params, defaults, **how)

    def _advance(self, reason: str) -> None:
        if self.steps < self.param_groups[0]["freeze_step"]:
            for p, g in self._average(reason, True, self._gradient).items():
                adam(self._state_of(p), g, self._group_of[p]["betas"])
                self._move(p)
            return
        reason = reason or self._frozen_without_variance()
        for p, mean in self._average(reason, False, self._own).items():
            self._clear_residual(p)
            self.state[p]["exp_avg"] = self._only_alive(p, mean)
            self._move(p)

    def _own(self, p: torch.Tensor) -> torch.Tensor | None:
        """This rank's momentum, from its own gradient."""
        if p.grad is None or "exp_avg" not in self.state[p]:  # the second is refused
            return None
        b1 = self._group_of[p]["betas"][0]
        return self._only_alive(p, mix(self.state[p]["exp_avg"], b1, p.grad))

    def _missing(self, p: torch.Tensor) -> torch.Tensor:
        m: torch.Tensor = self._state_of(p)["exp_avg"]
        return m * self._group_of[p]["betas"][0]

    def _move(self, p: torch.Tensor) -> None:
        state, group = self.state[p], self._group_of[p]
        update = state["exp_avg"] / denominator_of(state["exp_avg_sq"], group["eps"])
        move(p, update, float(group["lr"]), group["weight_decay"])


def adam(state: dict[str, Any], g: torch.Tensor, betas: tuple[float, float]) -> None:
    """m and v after the mean gradient ``g``."""
    g = g.float()
    state["exp_avg"] = mix(state["exp_avg"], betas[0], g)
    state["exp_avg_sq"] = mix(state["exp_avg_sq"], betas[1], g * g)
