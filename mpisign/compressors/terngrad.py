"""TernGrad, and QSGD of one level: signs by chance, scaled so that their mean is the gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from mpisign import planes, policies
from mpisign.compressors.base import Compressor, State, abstains

if TYPE_CHECKING:
    import torch

_FLOAT32_MAX = 3.4028234663852886e38


@dataclass(frozen=True)
class TernGrad(Compressor):
    """s sign(g) with probability |g| / s, else 0; s = max|g| of the tensor. The ranks' mean.

    Unbiased, no state. What is not finite is no vote and not part of s. A tensor with an s below
    2.94e-39, whose inverse float32 does not hold, sends nothing.

    Source: Wen et al. 2017, TernGrad, Equations 1 to 4 (layer by layer, unclipped, each rank with
    its own s).
    """

    zeros: policies.Zeros = "abstain"
    ties: policies.Ties = "zero"

    aggregate: ClassVar[str] = "gathered_mean"
    scaled: ClassVar[bool] = True
    unit: ClassVar[str] = "gradient"
    norm: ClassVar[float] = float("inf")

    def __post_init__(self) -> None:
        super().__post_init__()
        abstains(self)

    def pack(
        self,
        grads: Sequence[torch.Tensor],
        states: Sequence[State],
        out: Any,
        offsets: Sequence[int],
        *,
        seed: int,
        step: int,
        rank: int,
        rates: Sequence[float] | None = None,
        scales: Any = None,
    ) -> int:
        name = type(self).__name__
        if scales is None:
            raise ValueError(
                f"{name}.pack: scales must be given, signs alone are not what it sends"
            )
        at, nans = 0, 0
        for g, start in zip(grads, offsets, strict=True):
            if not g.numel():
                continue
            finite, scale = self._scaled(g.detach())
            part = out[..., start : start + planes.plane_bytes(g.numel())]
            budget = 1 / scale if scale else _FLOAT32_MAX
            if budget > _FLOAT32_MAX:
                scale, budget = 0.0, 1.0
            *_, bad = planes.pack_sparsign(
                finite,
                budget=budget,
                seed=seed,
                step=step,
                rank=rank,
                offset=8 * start,
                out=part,
            )
            if not scale:
                part[...] = 0
            scales[at] = scale
            at, nans = at + 1, nans + int(bad)
        return nans

    def _scaled(self, g: torch.Tensor) -> tuple[torch.Tensor, float]:
        """``g`` with NaN for what is not finite in float32, and its norm, a number of float32."""
        import torch

        def norm(x: torch.Tensor) -> float:
            wide = torch.linalg.vector_norm(x, self.norm, dtype=torch.float64)
            return float(wide.clamp(max=_FLOAT32_MAX).float())

        x = g.float()
        if torch.linalg.vector_norm(x, float("inf")).isfinite():
            return x, norm(x)
        good = x.isfinite()
        return x.where(good, torch.nan), norm(x.where(good, 0))


@dataclass(frozen=True)
class QSGD(TernGrad):
    """TernGrad with s the 2-norm of the tensor: sparser, with more variance.

    Source: Alistarh et al. 2017, QSGD, Section 3.1 with one level (s = 1 there).
    """

    norm: ClassVar[float] = 2.0
