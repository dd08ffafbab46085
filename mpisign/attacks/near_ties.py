"""NearTies: an attacker that knows all votes flips those that it can."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mpisign.attacks.base import Attack, check_from_0


@dataclass(frozen=True)
class NearTies(Attack):
    """Votes against the honest majority where ``f`` hostile votes decide it, with it elsewhere.

    With s the sum of a coordinate's signs over the rows (n, d): sends mean|x| with the sign of -s
    where |s| <= f (at |s| = f the vote becomes a tie), of s elsewhere; where s = 0 against the
    mean. This is the strongest that f votes can do to a flat vote of signs in one step. The rows
    are what is voted on: momenta, with Signum. Source: the omniscient adversary of Bernstein et al.
    2019, Theorem 2; shared/spec.md section 4.

    Args:
        f: Number of hostile ranks, from 0.

    Example:
        >>> import numpy as np
        >>> NearTies(f=1)(np.array([[1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])).tolist()
        [1.0, -1.0]
    """

    f: int

    def __post_init__(self) -> None:
        check_from_0(self, "f", integer=True)

    def of(self, rows: Any) -> Any:
        s = (rows > 0).sum(0) * 1 - (rows < 0).sum(0) * 1
        mean = rows.mean(0)
        lead = _signs(s) + (s == 0) * _signs(mean)
        turned = (abs(s) <= self.f) * 2
        return abs(rows).mean(0) * lead * (1 - turned)


def _signs(x: Any) -> Any:
    return (x > 0) * 1 - (x < 0) * 1
