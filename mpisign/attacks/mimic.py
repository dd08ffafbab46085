"""Mimic: hostile ranks repeat one honest rank's vote."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mpisign.attacks.base import Attack, check_from_0, copied


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
