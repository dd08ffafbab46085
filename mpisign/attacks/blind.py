"""Attacks that look at nobody's gradients, or at the size of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from mpisign.attacks.base import Attack, Sees, filled

Seed = int | Sequence[int] | np.random.Generator | None


@dataclass(frozen=True)
class Constant(Attack):
    """``value`` in every coordinate. Source: Li et al. 2019, RSA, section 6 (same value)."""

    value: float = 1.0
    sees: ClassVar[Sees] = "nothing"

    def of(self, rows: Any) -> Any:
        return filled(rows, float(self.value))


@dataclass(frozen=True)
class Inf(Attack):
    """Infinity in every coordinate: what no rule may let through."""

    sees: ClassVar[Sees] = "nothing"

    def of(self, rows: Any) -> Any:
        return filled(rows, math.inf)


@dataclass(frozen=True)
class _Drawn(Attack):
    """Draws by NumPy in every framework, so that one seed gives one vector; each call a new one."""

    seed: Seed = field(default=None, kw_only=True, repr=False)  # a rank's own
    _rng: np.random.Generator = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_rng", np.random.default_rng(self.seed))

    def _normal(self, rows: Any, mean: float, deviation: float) -> Any:
        return filled(rows, self._rng.normal(mean, deviation, rows.shape[1]))


@dataclass(frozen=True)
class Gaussian(_Drawn):
    """Independent coordinates of N(mu, sigma^2). ``seed``: what NumPy's default_rng takes."""

    mu: float = 0.0
    sigma: float = 1.0
    coordinatewise: ClassVar[bool] = False  # pieces of it would be other draws
    sees: ClassVar[Sees] = "nothing"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sigma >= 0:
            raise ValueError(f"Gaussian: sigma must be at least 0, got {self.sigma!r}")

    def of(self, rows: Any) -> Any:
        return self._normal(rows, self.mu, self.sigma)


@dataclass(frozen=True)
class Random(_Drawn):
    """Noise, sigma times as long as the rows are: N(0, sigma^2 mean of all squares).

    In a job as long as the own gradient: nothing tells it by its size. ``seed``: as Gaussian's.
    """

    sigma: float = 1.0
    coordinatewise: ClassVar[bool] = False
    sees: ClassVar[Sees] = "own"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sigma >= 0:
            raise ValueError(f"Random: sigma must be at least 0, got {self.sigma!r}")

    def of(self, rows: Any) -> Any:
        size = float((rows**2).mean()) ** 0.5 if rows.shape[1] else 0.0
        # Of a gradient that is not finite there is no size to take.
        return self._normal(rows, 0.0, self.sigma * (size if math.isfinite(size) else 1.0))
