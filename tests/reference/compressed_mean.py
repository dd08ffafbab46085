"""Two-sided error feedback: ranks compress, shard owners average and compress again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from reference.compressors import error_feedback
from reference.votes import weighted_sum


def shard_bounds(length: int, p: int, block: int | None = None) -> list[int]:
    """Where the p shards begin and end: whole blocks, or whole bytes if there is one block."""
    unit = block or 8
    units = -(-length // unit)
    return [min(length, units * r // p * unit) for r in range(p + 1)]


class CompressedMean:
    """The residuals of p ranks and of p shard owners, and what one step makes of them.

    c_r = C(x_r + e_r), e_r = x_r + e_r - c_r on each rank; the owner of a shard sends C(m + e'),
    m the mean of the c_r there, e' = m + e' - C(m + e'). C: signs times mean abs of each block.

    Source: Tang et al. 2021, 1-bit Adam, Algorithm 1, lines 6 to 10; Seide et al. 2014, 1-bit SGD.
    """

    def __init__(self, length: int, p: int, block: int | None) -> None:
        self.p, self.block, self.length = p, block, length
        self.residuals = [np.zeros(length, np.float32) for _ in range(p)]
        self.owners = np.zeros(length, np.float32)

    def step(self, xs: Sequence[Any], zeros: str, seed: int, step: int) -> Any:
        """The result (length,), fp32; random bits of zeros are of stream rank, p + owner."""
        masked = zeros == "abstain" or not all(np.isfinite(x).all() for x in xs)
        how: dict[str, Any] = {"block": self.block, "zeros": zeros, "seed": seed, "step": step}
        sent = []
        for r, x in enumerate(xs):
            *planes, self.residuals[r], _, _ = error_feedback(x, self.residuals[r], rank=r, **how)
            sent.append(planes)
        signs, masks, scales = (np.stack(s) for s in zip(*sent, strict=True))
        weights = scales / np.float32(self.p)
        mean = weighted_sum(
            signs, masks if masked else None, weights, self.block, length=self.length
        )
        result = np.zeros(self.length, np.float32)
        cuts = shard_bounds(self.length, self.p, self.block)
        for r, (a, b) in enumerate(zip(cuts, cuts[1:], strict=False)):
            if a == b:
                continue
            sign, mask, scale, self.owners[a:b], _, _ = error_feedback(
                mean[a:b], self.owners[a:b], rank=self.p + r, offset=a, **how
            )
            voters = mask[None] if zeros == "abstain" else None
            result[a:b] = weighted_sum(sign[None], voters, scale[None], self.block, length=b - a)
        return result
