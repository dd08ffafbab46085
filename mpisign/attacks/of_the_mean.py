"""Attacks that send a scaled or shifted mean of the honest rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from mpisign.attacks.base import Attack, Sees, variance


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
