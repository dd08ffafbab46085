"""NearTies: who knows all votes turns those that it can, and hides in the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mpisign.attacks.base import Attack


@dataclass(frozen=True)
class NearTies(Attack):
    """Votes against the honest majority where ``f`` hostile votes decide it, with it elsewhere.

    Of rows (n, d), with s the sum of a coordinate's signs: sends mean|x| with the sign of -s where
    |s| <= f (at |s| = f the vote becomes a tie), of s elsewhere; s = 0: against the mean. The
    strongest that f votes can do to a flat vote of signs in one step, and no distance to the vote
    shows it where it did not win. What rows are is what is voted on: momenta, with Signum.
    Source: the omniscient adversary of Bernstein et al. 2019, Theorem 2; shared/spec.md section 4.
    """

    f: int

    def __post_init__(self) -> None:
        if not isinstance(self.f, int) or self.f < 0:
            raise ValueError(f"NearTies: f must be an int from 0, got {self.f!r}")

    def of(self, rows: Any) -> Any:
        s = (rows > 0).sum(0) * 1 - (rows < 0).sum(0) * 1
        mean = rows.mean(0)
        lead = _signs(s) + (s == 0) * _signs(mean)
        turned = (abs(s) <= self.f) * 2
        return abs(rows).mean(0) * lead * (1 - turned)


def _signs(x: Any) -> Any:
    return (x > 0) * 1 - (x < 0) * 1
