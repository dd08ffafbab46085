"""TernGrad, and QSGD of one level: signs by chance, scaled so that their mean is the gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from mpisign import planes, policies
from mpisign.compressors.base import Compressor, PackContext, State, abstains

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

    def __post_init__(self) -> None:
        super().__post_init__()
        abstains(self)

    def pack(
        self,
        grads: Sequence[torch.Tensor],
        states: Sequence[State],
        out: Any,
        offsets: Sequence[int],
        context: PackContext,
    ) -> int:
        name = type(self).__name__
        scales = context.scales
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
                **context.keys,
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
        x = g.float()
        largest = _largest(x)
        if not math.isfinite(largest):
            good = x.isfinite()
            largest = _largest(x.where(good, 0))
            return x.where(good, math.nan), self._norm(x.where(good, 0), largest)
        return x, self._norm(x, largest)

    def _norm(self, x: torch.Tensor, largest: float) -> float:
        """s of ``x``, float32, all of it finite."""
        return largest


def _largest(x: torch.Tensor) -> float:
    import torch

    low, high = torch.aminmax(x)
    return max(-float(low), float(high))


@dataclass(frozen=True)
class QSGD(TernGrad):
    """TernGrad with s the 2-norm of the tensor: sparser, with more variance.

    Source: Alistarh et al. 2017, QSGD, Section 3.1 with one level (s = 1 there).
    """

    def _norm(self, x: torch.Tensor, largest: float) -> float:
        import torch

        norm = torch.linalg.vector_norm(x, dtype=torch.float64)
        return float(norm.clamp(max=_FLOAT32_MAX).float())
