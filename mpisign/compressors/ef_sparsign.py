"""EF-sparsign: sparse votes of local steps, and one residual that all ranks share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from mpisign import planes, policies
from mpisign.compressors.base import Compressor, PackContext, State, get_or_init
from mpisign.compressors.checks import check_abstains, check_positive, check_whole

if TYPE_CHECKING:
    import torch

_LOCAL = 0xD1B54A32D192ED03  # both draws of a step come from streams of their own


@dataclass(frozen=True)
class EFSparsign(Compressor):
    """s_i = sparsign(sum over ``local_steps`` of sparsign(g; B_l); B_g), v = mean(s) + e.

    out = (l1(v) / d) sign(v) for each tensor; e = v - out. The optimizer receives out, of the size
    of a share of signs. State: ``residual``, e, float32, the gradient's shape, equal on all ranks,
    so ranks may join and leave. A NaN never votes. Source: Jin et al. 2023, Magnitude matters,
    Algorithm 2.

    Args:
        budget_local: B_l, in 1 / g.
        budget_global: B_g, in 1 / steps.
        local_steps: Steps per exchange. A rank moves by its own sparsign(g; B_l) before the last
            one; after it parameters return to where the round began and move by out. The front end
            takes these steps and gives ``pack`` their sums.
        local_lr: The rate of the steps that a rank takes alone, in which nothing else moves a
            parameter (no weight decay). It is a number of its own: a schedule of the optimizer's
            rate, which is that of the exchange, leaves it as it is. None: the optimizer's rate.
        zeros, nan, ties: As ``Compressor``; zeros must be "abstain".

    Example:
        >>> import torch
        >>> state = {}
        >>> EFSparsign().decompress(torch.tensor([1.0, -0.5]), state, rate=0.1)
        tensor([ 0.7500, -0.7500])
        >>> state["residual"]
        tensor([0.2500, 0.2500])
    """

    budget_local: float = 10.0
    budget_global: float = 1.0
    local_steps: int = 1
    local_lr: float | None = None
    zeros: policies.Zeros = "abstain"
    ties: policies.Ties = "zero"

    aggregate: ClassVar[str] = "gathered_mean"
    shared: ClassVar[tuple[str, ...]] = ("residual",)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "budget_local", "budget_global")
        check_abstains(self)
        check_whole(self, "local_steps", 1, "an integer from 1")
        if self.local_lr is not None:
            check_positive(self, "local_lr")
            if self.local_steps == 1:
                raise ValueError(
                    "EFSparsign: local_lr must be None where local_steps=1, as no step is taken "
                    f"alone, got {self.local_lr!r}"
                )

    def _pack(self, grads: Any, states: Any, context: PackContext, keys: Any) -> Any:
        nans = 0
        if self.local_steps == 1:  # else the sums of the round's local sparsigns are given
            local = {**keys, "seed": context.seed ^ _LOCAL, "out": None}
            votes, _, nans = planes.pack_sparsign(grads, budget=self.budget_local, **local)
            grads = [
                planes.unpack(votes[:, a : a + planes.plane_bytes(g.numel())], tuple(g.shape))
                for g, a in zip(grads, keys["offsets"], strict=True)
            ]
        bad = planes.pack_sparsign(grads, budget=self.budget_global, **keys)[2]
        return int(nans) + int(bad)

    def initial_state(self, parameter: torch.Tensor) -> State:
        state: State = {}
        get_or_init(state, "residual", parameter)
        return state

    def decompress(self, mean: torch.Tensor, state: State, rate: float) -> torch.Tensor:
        if not mean.numel():
            return mean
        residual = get_or_init(state, "residual", mean)
        signs, scale, *_ = planes.pack_error_feedback(mean, residual, zeros="abstain")
        result: torch.Tensor = planes.unpack(signs, tuple(mean.shape), scale=float(scale[0]))
        return result
