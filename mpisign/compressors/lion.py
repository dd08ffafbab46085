"""Lion: the sign of a momentum that is looked at before it is updated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from mpisign import planes
from mpisign.compressors.base import State
from mpisign.compressors.signum import Momentum, MomentumDtype

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Lion(Momentum):
    """sign(b1 m + (1 - b1) g), then m = b2 m + (1 - b2) g: Distributed Lion by majority vote.

    The vote V moves x -= lr (V + wd x), which torch's SGD does with ``weight_decay``. State: as
    ``Signum``. Source: Chen et al. 2023, Symbolic discovery of optimization algorithms, Algorithm
    2; Liu et al. 2024, Communication efficient distributed training with Distributed Lion,
    Algorithm 1 (MaVo).

    Args:
        beta1: b1, in [0, 1).
        beta2: b2, in [0, 1).
        momentum_dtype: "float32" or "bfloat16".
        density: As ``Signum``: the share of coordinates that vote, those of the largest
            |b1 m + (1 - b1) g|.
        zeros, nan, ties: As ``Signum``.

    Example:
        >>> import torch
        >>> Lion(beta1=0.5).compress(torch.tensor([4.0, -2.0]), {})
        tensor([ 2., -1.])
    """

    beta1: float = 0.9
    beta2: float = 0.99
    momentum_dtype: MomentumDtype = "float32"
    density: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("beta1", "beta2")

    def _fused(self, grads: Any, momenta: Any, **keys: Any) -> Any:
        return planes.pack_lion(grads, momenta, beta1=self.beta1, beta2=self.beta2, **keys)

    def compress(self, grad: torch.Tensor, state: State) -> torch.Tensor:
        m = self._momentum(state, grad)
        old, g = m.float(), grad.detach().float()
        voted = old * self.beta1 + g * (1.0 - self.beta1)
        new = old * self.beta2 + g * (1.0 - self.beta2)
        stored, bad = new.to(m.dtype), voted.isnan() | new.isnan()
        m.copy_(stored.where(stored.isfinite() & ~bad, m))
        return voted.masked_fill_(bad, float("nan"))


@dataclass(frozen=True)
class LionAvg(Lion):
    """``Lion`` with the mean of the ranks' signs: x -= lr ((1/p) sum of signs + wd x).

    Each rank receives ceil(log2(p + 1)) planes instead of one. Source: Liu et al. 2024, Algorithm 1
    (Avg).

    Args:
        beta1, beta2, momentum_dtype, zeros, nan, ties: As ``Lion``.
        density: None: where coordinates abstain, take ``Lion``.

    Example:
        >>> LionAvg().aggregate
        'mean_of_signs'
    """

    aggregate: ClassVar[str] = "mean_of_signs"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.density is not None:
            raise ValueError(
                f"LionAvg: density must be None or 1, got {self.density!r}; Compression.lion "
                "votes by the largest coordinates alone"
            )
