"""One rank's part in a vote, and the arithmetic that every voting algorithm shares."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mpisign import planes, policies
from mpisign.stats import stage

Planes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Ballot:
    """``planes``: uint8 (k, B), contiguous; k = 2 with a mask plane. All else is agreed."""

    planes: Planes
    length: int
    ties: policies.Ties
    seed: int
    step: int

    def tally(self, stack: Planes, length: int, first_byte: int) -> Planes:
        """The majority of ``stack`` (n, k, b), bytes [first_byte, first_byte + b) of the ballots.

        Returns (kd, b), kd = 2 if ties are zero. The random bits of ties depend on the place in the
        whole ballot alone, so that any shard is decided alike by whoever tallies it.
        """
        n, k, b = stack.shape
        out = np.empty((policies.planes_down(self.ties), b), dtype=np.uint8)
        with stage("vote"):
            planes.majority(
                stack if k == 2 else stack[:, 0],
                length=length,
                ties=self.ties,
                seed=self.seed,
                step=self.step,
                offset=8 * first_byte,
                out=out if len(out) == 2 else out[0],
            )
        return out
