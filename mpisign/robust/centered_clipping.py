"""Centered clipping: steps from a center, in which no row pulls further than tau."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np

from mpisign.robust.arguments import check_count, check_number
from mpisign.robust.base import Floats, Needs, Random, Rule
from mpisign.robust.points import iterated, needs_of
from mpisign.robust.stack import copied


@dataclass(frozen=True)
class CenteredClipping(Rule):
    """v += mean of (x_i - v) min(1, tau / |x_i - v|), L times, from v = m.

    A hostile row moves the result by at most L tau / n; a tau below the honest rows' spread biases
    it. The rows are centered on m (a copy in their dtype) before they are measured. The rule keeps
    nothing: ``rule.after(v)`` starts from the last result v, as ByzFL does by itself. ``m`` is not
    part of ``==`` and ``repr``. Source: Karimireddy et al. 2021, Learning from history, algorithm
    2; L and tau as in ByzFL.

    Args:
        m: Vector (d,) of the rows' framework, of which the rule keeps a copy. None: the origin.
        L: Number of steps.
        tau: Largest pull of a row per step, in units of the rows.

    Example:
        >>> CenteredClipping(tau=1.0)(np.array([[0.5], [0.5], [-900.0]])).tolist()
        [0.0]
    """

    m: Any = field(default=None, repr=False, compare=False)
    L: int = 1
    tau: float = 100.0

    def __post_init__(self) -> None:
        check_count(self, "L", 0)
        check_number(self, "tau", zero=True)
        if self.m is not None and not hasattr(self.m, "shape"):
            raise TypeError(
                "CenteredClipping: m must be a NumPy or CuPy array or a torch tensor, "
                f"got {type(self.m).__name__}"
            )
        if self.m is not None:  # the caller's array may change, the rule may not
            object.__setattr__(self, "m", copied(self.m))

    @property
    def needs(self) -> Needs:
        return needs_of(self.L)

    @property
    def center(self) -> Any:
        return self.m

    def after(self, result: Any) -> Self:
        """The same rule with m = ``result``."""
        return replace(self, m=result)

    def weights(self, squared: Floats | None, n: int, rng: Random) -> Floats | None:
        def step(v: Floats, apart: Floats) -> Floats:
            share = np.minimum(1.0, self.tau / np.maximum(np.sqrt(apart), 1e-300)) / n
            v = v * (1.0 - share.sum())
            v[0, :n] += share
            return v

        return iterated(self.L, step, squared, n)
