"""Lion: the sign of a momentum that is looked at before it is updated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from mpisign import planes
from mpisign.compressors.base import Compressor, PackContext, State, get_or_init
from mpisign.compressors.signum import MomentumDtype, momentum_fits

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Lion(Compressor):
    """sign(b1 m + (1 - b1) g), then m = b2 m + (1 - b2) g: Distributed Lion by majority vote.

    ``state["momentum"]``: as Signum's, and as there neither NaN nor infinity enters it. The vote V
    moves x -= lr (V + wd x), which torch's SGD does with weight_decay.

    Source: Chen et al. 2023, Symbolic discovery of optimization algorithms, Algorithm 2; Liu et al.
    2024, Communication efficient distributed training with Distributed Lion, Algorithm 1 (MaVo).
    """

    beta1: float = 0.9
    beta2: float = 0.99
    momentum_dtype: MomentumDtype = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        momentum_fits(self, ("beta1", "beta2"), self.momentum_dtype)

    def pack(
        self,
        grads: Sequence[torch.Tensor],
        states: Sequence[State],
        out: Any,
        offsets: Sequence[int],
        context: PackContext,
    ) -> int:
        if not grads:
            return 0
        _, _, nans = planes.pack_lion(
            grads,
            [
                get_or_init(state, "momentum", g, self.momentum_dtype)
                for g, state in zip(grads, states, strict=True)
            ],
            beta1=self.beta1,
            beta2=self.beta2,
            zeros=self.zeros,
            nan=self.nan,
            **context.keys,
            offsets=offsets,
            out=out,
        )
        return int(nans)

    def compress(self, grad: torch.Tensor, state: State) -> torch.Tensor:
        m = get_or_init(state, "momentum", grad, self.momentum_dtype)
        old, g = m.float(), grad.detach().float()
        voted = old * self.beta1 + g * (1.0 - self.beta1)
        new = old * self.beta2 + g * (1.0 - self.beta2)
        stored, bad = new.to(m.dtype), voted.isnan() | new.isnan()
        m.copy_(stored.where(stored.isfinite() & ~bad, m))
        return voted.masked_fill_(bad, float("nan"))

    def compress_missing(self, parameter: torch.Tensor, state: State) -> torch.Tensor:
        m = state.get("momentum")
        return super().compress_missing(parameter, state) if m is None else m


@dataclass(frozen=True)
class LionAvg(Lion):
    """Lion whose ranks' signs are averaged: x -= lr ((1/p) sum of signs + wd x).

    ceil(log2(p + 1)) planes down instead of one. Source: Liu et al. 2024, Algorithm 1 (Avg).
    """

    aggregate: ClassVar[str] = "mean_of_signs"
