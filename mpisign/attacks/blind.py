"""Attacks that use no gradients, or the size of the own one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from mpisign.attacks.base import Attack, Sees, check_from_0, filled

Seed = int | Sequence[int] | np.random.Generator | None


@dataclass(frozen=True)
class Constant(Attack):
    """``value`` in every coordinate.

    Source: Li et al. 2019, RSA, section 6 (same value).

    Args:
        value: The value.

    Example:
        >>> Constant(value=3.0)(np.zeros((4, 2))).tolist()
        [3.0, 3.0]
    """

    value: float = 1.0
    sees: ClassVar[Sees] = "nothing"

    def of(self, rows: Any) -> Any:
        return filled(rows, float(self.value))


@dataclass(frozen=True)
class Inf(Attack):
    """Infinity in every coordinate.

    Example:
        >>> Inf()(np.zeros((4, 2))).tolist()
        [inf, inf]
    """

    sees: ClassVar[Sees] = "nothing"

    def of(self, rows: Any) -> Any:
        return filled(rows, math.inf)


@dataclass(frozen=True)
class Drawn(Attack):
    """An attack with a generator of its own; each call draws anew."""

    seed: Seed = field(default=None, kw_only=True, repr=False)  # a rank's own
    _rng: np.random.Generator = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_rng", np.random.default_rng(self.seed))


@dataclass(frozen=True)
class _Noise(Drawn):
    """Normal noise, drawn by NumPy, so that a seed gives the same vector in every framework."""

    coordinatewise: ClassVar[bool] = False  # pieces of it would be other draws

    def __post_init__(self) -> None:
        super().__post_init__()
        check_from_0(self, "sigma")

    def _normal(self, rows: Any, mean: float, deviation: float) -> Any:
        return filled(rows, self._rng.normal(mean, deviation, rows.shape[1]))


@dataclass(frozen=True)
class Gaussian(_Noise):
    """Independent coordinates of N(mu, sigma^2).

    Args:
        mu: Mean.
        sigma: Standard deviation, from 0.
        seed: Anything numpy.random.default_rng takes; each rank has its own.

    Example:
        >>> Gaussian(mu=2.0, sigma=0.0)(np.zeros((4, 2))).tolist()
        [2.0, 2.0]
    """

    mu: float = 0.0
    sigma: float = 1.0
    sees: ClassVar[Sees] = "nothing"

    def of(self, rows: Any) -> Any:
        return self._normal(rows, self.mu, self.sigma)


@dataclass(frozen=True)
class Random(_Noise):
    """Noise sigma times as long as the rows: N(0, sigma^2 mean of all squares).

    In a job it is as long as the own gradient, so its size does not give it away.

    Args:
        sigma: Ratio of lengths, from 0.
        seed: As ``Gaussian``.

    Example:
        >>> Random(sigma=1.0, seed=0)(np.ones((4, 2))).round(2).tolist()
        [0.13, -0.13]
    """

    sigma: float = 1.0
    sees: ClassVar[Sees] = "own"

    def of(self, rows: Any) -> Any:
        size = float((rows**2).mean()) ** 0.5 if rows.shape[1] else 0.0
        # The size of a gradient that is not finite is unknown.
        return self._normal(rows, 0.0, self.sigma * (size if math.isfinite(size) else 1.0))


@dataclass(frozen=True)
class LabelFlipping(Attack):
    """Label y becomes classes - 1 - y in hostile ranks' batches; gradients are not replaced.

    On rows, by ByzFL's convention, it is their mean, for gradients that flipped labels gave.
    Source: Tolpegin et al. 2020, Data poisoning attacks against federated learning systems.

    Args:
        classes: Number of labels.

    Example:
        >>> import numpy as np
        >>> LabelFlipping().batch(None, np.array([0, 7]))[1].tolist()
        [9, 2]
    """

    classes: int = 10
    sees: ClassVar[Sees] = "nothing"

    @property
    def replaces(self) -> bool:
        return False

    def of(self, rows: Any) -> Any:
        return rows.mean(0)

    def batch(self, images: Any, labels: Any) -> tuple[Any, Any]:
        return images, self.classes - 1 - labels
