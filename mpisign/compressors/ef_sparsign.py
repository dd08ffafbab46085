"""EF-sparsign: sparse votes of local steps, and one residual that all ranks share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from mpisign import planes, policies
from mpisign.compressors.base import Compressor, PackContext, State, abstains, get_or_init, positive

if TYPE_CHECKING:
    import torch

_LOCAL = 0xD1B54A32D192ED03  # both draws of a step come from streams of their own


@dataclass(frozen=True)
class EFSparsign(Compressor):
    """Each rank sends s_i = sparsign(sum of sparsign(g; B_l) over ``local_steps``; B_g).

    All ranks add the mean of s_i to the one residual: v = mean + e; out = (l1(v) / d) sign(v) for
    each tensor; e = v - out. The optimizer is handed out, of the size of a share of signs.

    ``budget_local`` B_l, in 1 / g; ``budget_global`` B_g, in 1 / steps. ``local_steps``: before a
    round's last a rank moves by its sparsign(g; B_l) alone; after it parameters start again from
    where the round began and move by out. ``pack`` is given the round's sums then: front ends walk
    (``mpisign.exchange.local_steps``).

    State: ``residual``, float32, the gradient's shape, equal on all ranks, which may therefore come
    and go. A NaN never votes.

    Source: Jin et al. 2023, Magnitude matters, Algorithm 2.
    """

    budget_local: float = 10.0
    budget_global: float = 1.0
    local_steps: int = 1
    zeros: policies.Zeros = "abstain"
    ties: policies.Ties = "zero"

    aggregate: ClassVar[str] = "gathered_mean"
    shared: ClassVar[tuple[str, ...]] = ("residual",)

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "budget_local")
        positive(self, "budget_global")
        abstains(self)
        if not isinstance(self.local_steps, int) or self.local_steps < 1:
            raise ValueError(
                f"EFSparsign: local_steps must be an integer from 1, got {self.local_steps!r}"
            )

    def pack(
        self,
        grads: Sequence[torch.Tensor],
        states: Sequence[State],
        out: Any,
        offsets: Sequence[int],
        context: PackContext,
    ) -> int:
        """Of gradients if ``local_steps`` is 1; else of the round's sums of local sparsigns."""
        if not grads:
            return 0
        nans = 0
        if self.local_steps == 1:
            votes, _, nans = planes.pack_sparsign(
                grads,
                budget=self.budget_local,
                seed=context.seed ^ _LOCAL,
                step=context.step,
                rank=context.rank,
                offsets=offsets,
            )
            grads = [
                planes.unpack(
                    votes[:, start : start + planes.plane_bytes(g.numel())], tuple(g.shape)
                )
                for g, start in zip(grads, offsets, strict=True)
            ]
        _, _, bad = planes.pack_sparsign(
            grads,
            budget=self.budget_global,
            **context.keys,
            offsets=offsets,
            out=out,
        )
        return int(nans) + int(bad)

    def decompress(self, mean: torch.Tensor, state: State, rate: float) -> torch.Tensor:
        if not mean.numel():
            return mean
        signs, scale, *_ = planes.pack_error_feedback(
            mean, get_or_init(state, "residual", mean), zeros="abstain"
        )
        result: torch.Tensor = planes.unpack(signs, tuple(mean.shape), scale=float(scale[0]))
        return result
