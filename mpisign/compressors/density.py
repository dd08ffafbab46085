"""The largest of a tensor, by a threshold that a sample gives."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

#: Coordinates that are looked at for the threshold, at most.
SAMPLE = 1 << 14
_TINY = 1.401298464324817e-45  # above 0 and below every other number of float32
_LARGEST = 3.4028234663852886e38


def keep_largest(
    x: torch.Tensor, density: float, *, seed: int, step: int, rank: int, offset: int
) -> torch.Tensor:
    """What ``planes.pack_sparsign(budget=1)`` turns into votes of the k largest |x|.

    k = ceil(density n) of n coordinates. The threshold t is the k-th largest |x|; where n is above
    ``SAMPLE``, the ceil(density SAMPLE)-th largest of as many coordinates, drawn with replacement
    by NumPy's Philox with key (seed, 1) and counter from (0, offset, step, rank). Then k is met
    with a relative error of about 1 / sqrt(density SAMPLE).

    Returns float32 of ``x``'s shape: of magnitude 1 or more above t, and 0 below it. At t, where
    many may tie, the probability that fills up to k. A NaN stays, and counts as 0. An exact 0 stays
    0, so fewer vote where fewer than k are not 0.
    """
    import torch

    x = x.float()
    n = x.numel()
    if not n:
        return x
    size = x.abs()
    if n > SAMPLE:
        counter = np.array([0, offset, step, rank], dtype=np.uint64)
        key = np.array([seed, 1], dtype=np.uint64)
        at = np.random.Generator(np.random.Philox(key=key, counter=counter)).integers(
            n, size=SAMPLE
        )
        sample = size.reshape(-1)[torch.from_numpy(at).to(x.device)]
    else:
        sample = size.reshape(-1)
    sample = sample.masked_fill(sample.isnan(), 0)
    s = sample.numel()
    t = sample.kthvalue(s + 1 - math.ceil(density * s)).values.clamp_(_TINY, _LARGEST)
    tied = size == t
    room = math.ceil(density * n) - (size > t).sum()
    share = (room.clamp_(min=0).double() / tied.sum().clamp_(min=1)).clamp_(max=1).float()
    # Rounding keeps the order: |x| >= t gives |x / t| >= 1.
    kept = (x / t).masked_fill_(size < t, 0)
    return kept.where(~tied, kept * share)
