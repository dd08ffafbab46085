"""Mimic: hostile ranks double one honest rank's vote."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mpisign.attacks.base import Attack


@dataclass(frozen=True)
class Mimic(Attack):
    """Row ``epsilon`` of the rows (n, d), epsilon from 0 to n - 1: of uneven data one rank's win.

    Source: Karimireddy, He and Jaggi 2022, Byzantine-robust learning on heterogeneous datasets via
    bucketing, section 3.
    """

    epsilon: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.epsilon, int) or self.epsilon < 0:
            raise ValueError(f"Mimic: epsilon must be an int from 0, got {self.epsilon!r}")

    def check(self, n: int) -> None:
        if self.epsilon >= n:
            raise ValueError(f"Mimic: epsilon must be below the {n} rows, got {self.epsilon}")

    def of(self, rows: Any) -> Any:
        row = rows[self.epsilon]
        return row.clone() if hasattr(row, "clone") else row.copy()
