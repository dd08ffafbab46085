"""Attacks that send what the mean of the honest rows is turned or stretched into."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from mpisign.attacks.base import Attack, Sees, variance


@dataclass(frozen=True)
class SignFlipping(Attack):
    """-mean of the rows (n, d).

    In a job every hostile rank takes the opposite of its own gradient, as blind adversaries do
    (Bernstein et al. 2019, signSGD with majority vote, section 4); of the honest mean:
    ``InnerProductManipulation(1)``. Source: Allen-Zhu et al. 2020, Byzantine-resilient non-convex
    SGD.
    """

    sees: ClassVar[Sees] = "own"

    def of(self, rows: Any) -> Any:
        return -rows.mean(0)


@dataclass(frozen=True)
class Reversed(Attack):
    """-scale times the mean of the rows; in a job of the own gradient.

    Source: Rajput et al. 2019, DETOX, section 5 (reversed gradient, times -100).
    """

    scale: float = 100.0
    sees: ClassVar[Sees] = "own"

    def of(self, rows: Any) -> Any:
        return rows.mean(0) * -self.scale


@dataclass(frozen=True)
class InnerProductManipulation(Attack):
    """-tau times the mean of the rows (n, d).

    Source: Xie, Koyejo and Gupta 2019, Fall of empires, section 4.
    """

    tau: float = 2.0

    def of(self, rows: Any) -> Any:
        return rows.mean(0) * -self.tau


@dataclass(frozen=True)
class ALittleIsEnough(Attack):
    """mean + tau std of the rows (n, d), coordinate by coordinate, std with n - 1; n from 2.

    Source: Baruch, Baruch and Goldberg 2019, A little is enough, Algorithm 3 (z is tau).
    """

    tau: float = 1.5

    def check(self, n: int) -> None:
        if n < 2:
            raise ValueError(f"{self.name}: a standard deviation needs 2 honest rows, got {n}")

    def of(self, rows: Any) -> Any:
        return rows.mean(0) + variance(rows) ** 0.5 * self.tau
