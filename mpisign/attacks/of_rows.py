"""Attacks that are functions of the honest rows: of their mean, their signs, or one of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from mpisign.attacks.base import Attack, Sees, check_from_0, copied, variance


@dataclass(frozen=True)
class SignFlipping(Attack):
    """-mean of the rows (n, d); in a job each hostile rank negates its own gradient.

    Those are the blind adversaries of Bernstein et al. 2019, signSGD with majority vote, section 4.
    For the negated honest mean use ``InnerProductManipulation(1)``. Source: Allen-Zhu et al. 2020,
    Byzantine-resilient non-convex SGD.

    Example:
        >>> import numpy as np
        >>> SignFlipping()(np.array([[1.0], [3.0]])).tolist()
        [-2.0]
    """

    sees: ClassVar[Sees] = "own"

    def of(self, rows: Any) -> Any:
        return -rows.mean(0)


@dataclass(frozen=True)
class Reversed(Attack):
    """-scale times the mean of the rows (n, d); in a job of the own gradient.

    Source: Rajput et al. 2019, DETOX, section 5 (reversed gradient, times -100).

    Args:
        scale: The factor, without its sign.

    Example:
        >>> import numpy as np
        >>> Reversed(scale=10.0)(np.array([[1.0], [3.0]])).tolist()
        [-20.0]
    """

    scale: float = 100.0
    sees: ClassVar[Sees] = "own"

    def of(self, rows: Any) -> Any:
        return rows.mean(0) * -self.scale


@dataclass(frozen=True)
class InnerProductManipulation(Attack):
    """-tau times the mean of the rows (n, d).

    Source: Xie, Koyejo and Gupta 2019, Fall of empires, section 4.

    Args:
        tau: The factor, without its sign.

    Example:
        >>> import numpy as np
        >>> InnerProductManipulation(tau=0.5)(np.array([[1.0], [3.0]])).tolist()
        [-1.0]
    """

    tau: float = 2.0

    def of(self, rows: Any) -> Any:
        return rows.mean(0) * -self.tau


@dataclass(frozen=True)
class ALittleIsEnough(Attack):
    """mean + tau std of the rows (n, d) per coordinate, std with n - 1; n >= 2.

    Source: Baruch, Baruch and Goldberg 2019, A little is enough, Algorithm 3 (z is tau).

    Args:
        tau: The shift, in standard deviations.

    Example:
        >>> import numpy as np
        >>> ALittleIsEnough(tau=2.0)(np.array([[1.0], [2.0], [3.0]])).tolist()
        [4.0]
    """

    tau: float = 1.5

    def check(self, n: int) -> None:
        if n < 2:
            raise ValueError(f"{self.name}: a standard deviation needs 2 honest rows, got {n}")

    def of(self, rows: Any) -> Any:
        return rows.mean(0) + variance(rows) ** 0.5 * self.tau


@dataclass(frozen=True)
class Mimic(Attack):
    """Row ``epsilon`` of the rows (n, d): with unequal data one rank counts more than once.

    Source: Karimireddy, He and Jaggi 2022, Byzantine-robust learning on heterogeneous datasets via
    bucketing, section 3.

    Args:
        epsilon: Index of the row, from 0.

    Example:
        >>> import numpy as np
        >>> Mimic(epsilon=1)(np.array([[1.0], [5.0]])).tolist()
        [5.0]
    """

    epsilon: int = 0

    def __post_init__(self) -> None:
        check_from_0(self, "epsilon", integer=True)

    def check(self, n: int) -> None:
        if self.epsilon >= n:
            raise ValueError(f"Mimic: epsilon must be below the {n} rows, got {self.epsilon}")

    def of(self, rows: Any) -> Any:
        return copied(rows[self.epsilon])


@dataclass(frozen=True)
class NearTies(Attack):
    """Votes against the honest majority where ``f`` hostile votes decide it, with it elsewhere.

    With s the sum of a coordinate's signs over the rows (n, d): sends mean|x| with the sign of -s
    where |s| <= f (at |s| = f the vote becomes a tie), of s elsewhere; where s = 0 against the
    mean. This is the strongest that f votes can do to a flat vote of signs in one step. The rows
    are what is voted on: momenta, with Signum. Source: the omniscient adversary of Bernstein et al.
    2019, Theorem 2.

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
