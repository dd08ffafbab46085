"""0/1 Adam: a variance that is refreshed ever less often, and steps between synchronisations."""

from __future__ import annotations

from typing import Any

import torch

from mpisign.exchange.skip import Rule
from mpisign.optim.arguments import check_steps
from mpisign.optim.arithmetic import denominator_of, mix, move
from mpisign.optim.base import CompressedOptimizer, Params
from mpisign.optim.onebit_adam import adam


class ZeroOneAdam(CompressedOptimizer):
    """Adam whose ranks exchange one bit a coordinate, later not in every step.

    Step t counts from 1. Up to ``var_freeze_step``: in steps that ``var_interval`` divides m and v
    take the fp32 mean of the gradients; in the others m takes their compressed mean and v stays.
    The interval is 1 and doubles after every ``var_update_scaler`` refreshes of v. Then v is frozen
    and each rank steps by itself, summing up u, from x = x0::

        m = b1 m + (1 - b1) g_i;  d = lr (m / (sqrt(v) + eps) + wd x);  x -= d;  u += d

    In steps that ``local_step_interval`` divides ranks synchronise: s, the compressed mean of all
    u (sqrt(v) + eps), gives m = s / (sum of lr), x = x0 - s / (sqrt(v) + eps), u = 0. That interval
    is 1 and doubles after every ``local_step_scaler`` steps, to ``local_step_clipper`` at most.

    Replicas hold the same bits after synchronisations only, which are all steps until
    ``local_step_interval`` is 2: evaluate and average buffers then (``synchronised``).

    Hyper-parameters mean what DeepSpeed 0.19.6's mean, whose first step moves nothing and counts;
    on one rank its m stays in steps that do not refresh v. Residuals start from zero at the freeze.
    All else is as in ``OneBitAdam``. Source: Lu et al. 2022, Maximizing communication efficiency
    for large-scale training via 0/1 Adam, Algorithm 1.

    Args:
        params, lr, betas, eps, weight_decay: As ``OneBitAdam``.
        var_freeze_step: Steps until v is frozen.
        var_update_scaler: Refreshes of v after which their interval doubles.
        local_step_scaler: Steps after which the interval of synchronisations doubles.
        local_step_clipper: The longest such interval.
        comm, block, skip, seed, bucket_size: As ``OneBitAdam``.

    Raises:
        TypeError, ValueError: For invalid arguments.

    Example:
        >>> x = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = ZeroOneAdam([x], lr=0.1, betas=(0.0, 0.0), var_freeze_step=100)
        >>> x.grad = torch.tensor([4.0, -2.0])
        >>> optimizer.step()
        >>> x.data, optimizer.synchronised
        (tensor([-0.1000,  0.1000]), True)
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        var_freeze_step: int = 100_000,
        var_update_scaler: int = 16,
        local_step_scaler: int = 32_678,
        local_step_clipper: int = 16,
        *,
        comm: Any = None,
        block: int | None = 4096,
        skip: str | Rule | None = "auto",
        seed: int = 0,
        bucket_size: int | None = None,
    ) -> None:
        schedule = {
            "var_freeze_step": var_freeze_step,
            "var_update_scaler": var_update_scaler,
            "local_step_scaler": local_step_scaler,
            "local_step_clipper": local_step_clipper,
        }
        for name, value in schedule.items():
            schedule[name] = check_steps("ZeroOneAdam", name, value)
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            **schedule,
            "step": 0,
            "var_interval": 1,
            "var_counter": 0,
            "local_step_interval": 1,
            "local_step_counter": 0,
            "lr_sum": 0.0,
        }
        how = {"comm": comm, "block": block, "skip": skip, "seed": seed, "bucket_size": bucket_size}
        super().__init__(params, defaults, **how)

    @property
    def synchronised(self) -> bool:
        """Whether all ranks hold the same parameters: not between synchronisations."""
        return not any(group["lr_sum"] for group in self.param_groups)

    def _advance(self, reason: str) -> None:
        if self.steps < self.param_groups[0]["var_freeze_step"]:
            self._refresh(reason)
        else:
            self._local(reason or self._frozen_without_variance())

    def _refresh(self, reason: str) -> None:
        """A step in which v may change."""
        first = self.param_groups[0]
        refresh = (first["step"] + 1) % first["var_interval"] == 0
        sent = self._gradient if refresh else self._copied
        for p, g in self._average(reason, refresh, sent).items():
            state, group = self._state_of(p), self._group_of[p]
            if refresh:
                adam(state, g, group["betas"])
            else:
                self._clear_residual(p)
                g = self._only_alive(p, g)
                state["exp_avg"] = mix(state["exp_avg"], group["betas"][0], g)
            denominator = denominator_of(state["exp_avg_sq"], group["eps"])
            move(p, state["exp_avg"] / denominator, float(group["lr"]), group["weight_decay"])
        for group in self.param_groups if refresh else ():
            group["var_counter"] += 1
            if group["var_counter"] == group["var_update_scaler"]:
                group["var_counter"], group["var_interval"] = 0, 2 * group["var_interval"]

    def _copied(self, p: torch.Tensor) -> torch.Tensor | None:
        """This rank's gradient, not to be written over, where a momentum may be."""
        g = self._gradient(p)
        return g if g is None or g.is_sparse else self._only_alive(p, g.clone())

    def _local(self, reason: str) -> None:
        """A step on v as it is: by this rank alone, or a synchronisation."""
        first = self.param_groups[0]
        t = first["step"] + 1
        if t == first["var_freeze_step"] + 1:
            self._restart_residuals()
        local = t % first["local_step_interval"] != 0
        if local:
            self._check_alone(reason)
        sums = {}
        for s in self._slots:
            p = s.parameter
            if p.grad is not None and not reason:
                m, update, u = self._moved(p)
                if local:
                    state = self.state[p]
                    state.setdefault("start", p.detach().clone())
                    state["exp_avg"], state["momentum_accumulator"] = m, u
                    p.sub_(update)
                else:
                    sums[p] = u
            elif not local and "momentum_accumulator" in self.state[p]:
                sums[p] = self.state[p]["momentum_accumulator"].clone()
        if not local:
            self._synchronise(reason, sums)
        for group in self.param_groups:
            group["lr_sum"] = group["lr_sum"] + float(group["lr"]) if local else 0.0
            group["local_step_counter"] += 1
            if group["local_step_counter"] == group["local_step_scaler"]:
                longer = min(group["local_step_clipper"], 2 * group["local_step_interval"])
                group["local_step_counter"], group["local_step_interval"] = 0, longer

    def _check_alone(self, reason: str) -> None:
        """Raises on this rank what other ranks will hear of when they wait for it."""
        if reason:
            raise RuntimeError(f"{self._name}.step: {reason}")

    def _moved(self, p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """m, the step, and u after this rank's gradient; nothing is written."""
        state, group = self._state_of(p), self._group_of[p]
        m = mix(state["exp_avg"], group["betas"][0], p.grad.detach())  # type: ignore[union-attr]
        self._only_alive(p, m)
        update = m / denominator_of(state["exp_avg_sq"], group["eps"])
        if group["weight_decay"]:
            update.add_(p.float() * group["weight_decay"])
        update.mul_(float(group["lr"]))
        u = state.get("momentum_accumulator")
        return m, update, update.clone() if u is None else u + update

    def _synchronise(self, reason: str, sums: dict[torch.Tensor, torch.Tensor]) -> None:
        """x and m from the mean of all u; parameters stay at this rank's own if it fails."""

        def sent(p: torch.Tensor) -> torch.Tensor | None:
            if p not in sums:
                return None
            return self._only_alive(p, sums[p].mul_(self._denominator(p)))

        own = {p: p.detach().clone() for p in self._slot_of if "start" in self.state[p]}
        for p in own:
            p.copy_(self.state[p]["start"])
        # After local steps each rank has its own m and u.
        self.exchange_now().compare_state(self.synchronised)
        try:
            means = self._average(reason, False, sent)
        except Exception:
            for p, x in own.items():
                p.copy_(x)
            raise
        for p, mean in means.items():
            state, group = self._state_of(p), self._group_of[p]
            self._clear_residual(p)
            p.sub_(self._only_alive(p, mean) / self._denominator(p))
            state["exp_avg"] = mean.div_(group["lr_sum"] + float(group["lr"]))
        for p in self._slot_of:
            for key in ("momentum_accumulator", "start"):
                self.state[p].pop(key, None)

    def _denominator(self, p: torch.Tensor) -> torch.Tensor:
        return denominator_of(self._state_of(p)["exp_avg_sq"], self._group_of[p]["eps"])  # type: ignore[no-any-return]

    def _missing(self, p: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(p, dtype=torch.float32)
