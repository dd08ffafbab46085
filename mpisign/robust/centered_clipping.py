"""Centered clipping: a step from where we are, no row pulling further than tau."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np

from mpisign.robust.arguments import check_count, check_number
from mpisign.robust.base import Floats, Needs, Random, Rule
from mpisign.robust.points import inner_products, squared_between


@dataclass(frozen=True)
class CenteredClipping(Rule):
    """v += mean of (x_i - v) min(1, tau / |x_i - v|), L times, from v = m.

    ``m``: a vector (d,) of the rows' framework; None: the origin. A hostile row moves the result by
    at most L tau / n, whatever it is; a tau below the honest rows' own spread biases it.

    A rule keeps nothing: ByzFL starts the next call from the last result, here
    ``rule = rule.after(v)`` says so (``dataclasses.replace(rule, m=v)``). The rows are centered on
    m (a copy of them, in their dtype) before they are measured. ``m`` is left out of ``==`` and
    ``repr``: ranks that compare rules compare L and tau.

    Source: Karimireddy et al. 2021, Learning from history, algorithm 2; L and tau as in ByzFL.
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

    @property
    def needs(self) -> Needs:
        return ("nothing", "norms", "distances")[min(self.L, 2)]  # type: ignore[return-value]

    @property
    def center(self) -> Any:
        return self.m

    def after(self, result: Any) -> Self:
        return replace(self, m=result)

    def weights(self, squared: Floats | None, n: int, rng: Random) -> Floats | None:
        v = np.zeros((1, n + 1))
        v[0, n] = 1.0
        if squared is None:
            return v[:, :n]
        rows = np.eye(n, n + 1)
        apart = squared[n, :n]
        products = inner_products(squared) if self.L > 1 else None
        for step in range(self.L):
            if step and products is not None:
                apart = squared_between(v, rows, products)[0]
            share = np.minimum(1.0, self.tau / np.maximum(np.sqrt(apart), 1e-300)) / n
            v = v * (1.0 - share.sum())
            v[0, :n] += share
        return v[:, :n]
