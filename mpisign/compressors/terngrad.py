"""TernGrad, and QSGD of one level: random signs, scaled so that their mean is the gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mpisign import planes, policies
from mpisign.compressors.base import Scaled, State
from mpisign.compressors.checks import check_abstains

if TYPE_CHECKING:
    import torch

_FLOAT32_MAX = 3.4028234663852886e38


@dataclass(frozen=True)
class TernGrad(Scaled):
    """s sign(g) with probability |g| / s, else 0, with s = max|g| of the tensor; the ranks' mean.

    Unbiased, no state. Coordinates that are not finite do not vote and are not part of s. A tensor
    with an s below 2.94e-39, whose inverse float32 does not hold, sends zeros. Source: Wen et al.
    2017, TernGrad, Equations 1 to 4 (layer by layer, unclipped, each rank with its own s).

    Args:
        zeros, nan, ties: As ``Compressor``; zeros must be "abstain".

    Example:
        >>> import numpy as np, torch
        >>> from mpisign.compressors import PackContext
        >>> out, scales = np.zeros((2, 1), np.uint8), np.zeros(1, np.float32)
        >>> context = PackContext(0, 0, 0, scales=scales)
        >>> TernGrad().pack([torch.tensor([2.0, -2.0, 0.0])], [{}], out, [0], context)
        0
        >>> scales.tolist(), np.unpackbits(out, 1, 3, "little").tolist()  # s; sign, mask
        ([2.0], [[0, 1, 0], [1, 1, 0]])
    """

    zeros: policies.Zeros = "abstain"
    ties: policies.Ties = "zero"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_abstains(self)

    def _pack_one(
        self, g: torch.Tensor, state: State, rate: float, out: Any, scales: Any, keys: Any
    ) -> Any:
        if not g.numel():
            return 0
        finite, scale = self._scale(g.detach())
        budget = 1 / scale if scale else _FLOAT32_MAX
        if budget > _FLOAT32_MAX:
            scale, budget = 0.0, 1.0
        *_, nans = planes.pack_sparsign(finite, budget=budget, **keys, out=out)
        if not scale:
            out[...] = 0
        scales[0] = scale
        return nans

    def _scale(self, g: torch.Tensor) -> tuple[torch.Tensor, float]:
        """``g`` with NaN for what is not finite in float32, and its norm, a number of float32."""
        x = g.float()
        largest = _largest(x)
        if not math.isfinite(largest):
            good = x.isfinite()
            zeroed = x.where(good, 0)
            return x.where(good, math.nan), self._norm(zeroed, _largest(zeroed))
        return x, self._norm(x, largest)

    def _norm(self, x: torch.Tensor, largest: float) -> float:
        """s of ``x``, float32, all of it finite."""
        return largest


def _largest(x: torch.Tensor) -> float:
    low, high = x.aminmax()
    return max(-float(low), float(high))


@dataclass(frozen=True)
class QSGD(TernGrad):
    """``TernGrad`` with s the 2-norm of the tensor: sparser, with more variance.

    Source: Alistarh et al. 2017, QSGD, Section 3.1 with one level (s = 1 there).

    Args:
        zeros, nan, ties: As ``TernGrad``.

    Example:
        >>> import numpy as np, torch
        >>> from mpisign.compressors import PackContext
        >>> scales = np.zeros(1, np.float32)
        >>> context = PackContext(0, 0, 0, scales=scales)
        >>> QSGD().pack([torch.tensor([3.0, 4.0])], [{}], np.zeros((2, 1), np.uint8), [0], context)
        0
        >>> scales.tolist()
        [5.0]
    """

    def _norm(self, x: torch.Tensor, largest: float) -> float:
        import torch

        norm = torch.linalg.vector_norm(x, dtype=torch.float64)
        return float(norm.clamp(max=_FLOAT32_MAX).float())
