"""1-bit LAMB: LAMB on averages, then momenta at one bit a coordinate and frozen trust ratios."""

from __future__ import annotations

import math
from typing import Any

import torch

from mpisign.exchange.skip import Rule
from mpisign.optim.arguments import check_number, check_steps
from mpisign.optim.arithmetic import denominator_of, mix, move
from mpisign.optim.base import CompressedOptimizer, Params
from mpisign.optim.onebit_adam import adam


class OneBitLamb(CompressedOptimizer):
    """LAMB on averaged gradients for ``freeze_step`` steps; then v and trust ratios are frozen.

    Until then m and v are those of ``OneBitAdam``, and of each tensor::

        d = m / (sqrt(v) + eps) + wd x;  c = |x| / |d|, in [min_coeff, max_coeff], 1 if one is 0
        x -= lr c d;  cbar = coeff_beta cbar + (1 - coeff_beta) c, where c is not 1

    From then on each rank has m_i = b1 m + (1 - b1) g_i and sends k m_i, where k scales the momenta
    of all tensors to one size, as at the freeze; the compressed mean over k is the next m. The
    ranks' mean gradient, (m - b1 m_before) / (1 - b1), gives a fresh v' beside the frozen v::

        f = max((sqrt(v) + eps) / (sqrt(v') + eps)); r = |m / (sqrt(v) + eps)| / |d|, at most 1
        f = f r + 1 - r, in [factor_min, factor_max] and within factor_threshold of the last f
        x -= lr cbar f d

    Norms are sums of integers, so that they do not depend on threads or instruction sets. All else
    is as in ``OneBitAdam``. Hyper-parameters mean what DeepSpeed 0.19.6's mean, whose first step
    moves nothing. Source: Li et al. 2021, 1-bit LAMB, Algorithm 1.

    Args:
        params, lr: As ``OneBitAdam``.
        freeze_step: Steps on averages; at least 1 / (1 - coeff_beta).
        betas, eps, weight_decay: As ``OneBitAdam``.
        max_coeff, min_coeff: Bounds of trust ratios.
        coeff_beta: Of the running mean of trust ratios.
        factor_max, factor_min: Bounds of f.
        factor_threshold: How much f may change in a step, as a share of it.
        comm, block, skip, seed, bucket_size: As ``OneBitAdam``.

    Raises:
        TypeError, ValueError: For invalid arguments.

    Example:
        >>> x = torch.nn.Parameter(torch.tensor([3.0, -4.0]))
        >>> optimizer = OneBitLamb([x], lr=0.1, betas=(0.0, 0.0), freeze_step=100)
        >>> x.grad = torch.tensor([2.0, 2.0])
        >>> optimizer.step()  # the step is a tenth of x in length
        >>> x.data
        tensor([ 2.6464, -4.3536])
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        freeze_step: int = 100_000,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        max_coeff: float = 10.0,
        min_coeff: float = 0.01,
        coeff_beta: float = 0.9,
        factor_max: float = 4.0,
        factor_min: float = 0.5,
        factor_threshold: float = 0.1,
        *,
        comm: Any = None,
        block: int | None = 4096,
        skip: str | Rule | None = "auto",
        seed: int = 0,
        bucket_size: int | None = None,
    ) -> None:
        function = "OneBitLamb"
        freeze_step = check_steps(function, "freeze_step", freeze_step)
        bounds = {
            "max_coeff": max_coeff,
            "min_coeff": min_coeff,
            "coeff_beta": coeff_beta,
            "factor_max": factor_max,
            "factor_min": factor_min,
            "factor_threshold": factor_threshold,
        }
        for name, value in bounds.items():
            check_number(function, name, value)
        if coeff_beta >= 1:
            raise ValueError(f"{function}: coeff_beta must be in [0, 1), got {coeff_beta!r}")
        for low, high in (("min_coeff", "max_coeff"), ("factor_min", "factor_max")):
            if bounds[low] > bounds[high]:
                limit = f"{high}, {bounds[high]!r}"
                raise ValueError(f"{function}: {low} must be at most {limit}, got {bounds[low]!r}")
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "freeze_step": freeze_step,
            **bounds,
            "step": 0,
        }
        how = {"comm": comm, "block": block, "skip": skip, "seed": seed, "bucket_size": bucket_size}
        super().__init__(params, defaults, **how)

    def _advance(self, reason: str) -> None:
        freeze = self.param_groups[0]["freeze_step"]
        if self.steps < freeze:
            for p, g in self._average(reason, True, self._gradient).items():
                adam(self._state_of(p), g, self._group_of[p]["betas"])
                self._warm_up(p)
            return
        if self.steps == freeze:
            self._freeze()
        reason = reason or self._frozen_without_variance()
        for p, mean in self._average(reason, False, self._own).items():
            self._compressed(p, mean)

    def _warm_up(self, p: torch.Tensor) -> None:
        """A step of LAMB, and the running mean of its trust ratio."""
        state, group = self.state[p], self._group_of[p]
        update = state["exp_avg"] / denominator_of(state["exp_avg_sq"], group["eps"])
        if group["weight_decay"]:
            update.add_(p.float() * group["weight_decay"])
        sizes, c = (norm(p), norm(update)), 1.0
        if all(sizes):
            c = min(max(sizes[0] / sizes[1], group["min_coeff"]), group["max_coeff"])
        if c != 1.0:
            beta, before = group["coeff_beta"], state.get("lamb_coeff_freeze", 0.0)
            state["lamb_coeff_freeze"] = beta * before + (1 - beta) * c
        move(p, update, float(group["lr"]) * c, 0.0)

    def _freeze(self) -> None:
        """Scales that bring all tensors' momenta to one size, and the fresh variance's start."""
        ps = [p for p in self._slot_of if "exp_avg" in self.state[p] and p.numel()]
        sizes = {p: norm(self.state[p]["exp_avg"]) / math.sqrt(p.numel()) for p in ps}
        mean = sum(sizes.values()) / max(1, len(sizes))
        for p, size in sizes.items():
            self.state[p]["scaling_coeff"] = mean / size if size else 1.0
            self.state[p]["exp_avg_sq_fresh"] = self.state[p]["exp_avg_sq"].clone()

    def _own(self, p: torch.Tensor) -> torch.Tensor | None:
        """This rank's momentum, scaled."""
        state = self.state[p]
        if p.grad is None or "scaling_coeff" not in state:  # the second is refused, or empty
            return None
        b1 = self._group_of[p]["betas"][0]
        m = mix(state["exp_avg"], b1, p.grad).mul_(state["scaling_coeff"])
        return self._only_alive(p, m)

    def _missing(self, p: torch.Tensor) -> torch.Tensor:
        state = self._state_of(p)
        m: torch.Tensor = state["exp_avg"] * self._group_of[p]["betas"][0]
        return m.mul_(state.get("scaling_coeff", 1.0))

    def _compressed(self, p: torch.Tensor, mean: torch.Tensor) -> None:
        """A step by the compressed mean of the scaled momenta."""
        state, group = self.state[p], self._group_of[p]
        (b1, b2), eps, decay = group["betas"], group["eps"], group["weight_decay"]
        self._clear_residual(p)
        before = state["exp_avg"]
        state["exp_avg"] = m = self._only_alive(p, mean.div_(state["scaling_coeff"]))
        g = (m - before * b1).div_(1.0 - b1)
        state["exp_avg_sq_fresh"] = mix(state["exp_avg_sq_fresh"], b2, g * g)
        denominator = denominator_of(state["exp_avg_sq"], eps)
        fresh = denominator_of(state["exp_avg_sq_fresh"], eps)
        factor = float((denominator / fresh).max())
        update = m / denominator
        if decay:
            size = norm(update)
            update.add_(p.float() * decay)
            whole = norm(update)
            share = min(1.0, size / whole) if whole else 1.0
            factor = factor * share + (1.0 - share)
        factor = min(max(factor, group["factor_min"]), group["factor_max"])
        last, most = state.get("last_factor", 1.0), group["factor_threshold"]
        factor = min(max(factor, last * (1.0 - most)), last * (1.0 + most))
        state["last_factor"] = factor
        move(p, update, float(group["lr"]) * state.get("lamb_coeff_freeze", 0.0) * factor, 0.0)


def norm(x: torch.Tensor) -> float:
    """The 2-norm, by a sum of integers: the same on every rank, whatever order it is added in."""
    if not x.numel():
        return 0.0
    top = float(x.detach().abs().max())
    if top == 0 or not math.isfinite(top):
        return top
    bits = min(52, 62 - x.numel().bit_length())
    share = x.detach().double().div_(top)
    total = int(share.mul_(share).mul_(2.0**bits).round_().long().sum())
    return top * math.sqrt(total / 2.0**bits)
