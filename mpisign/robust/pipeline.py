"""A rule after one or more mixings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from mpisign.robust.base import Flags, Floats, Mixing, Needs, Random, Rule
from mpisign.robust.points import squared_mixed


@dataclass(frozen=True, init=False)
class Pipeline(Rule):
    """Mixings in order, then a rule: ``Pipeline(NNM(1), Krum(1))``.

    Their weights are multiplied, and distances of mixed rows follow from those of the rows, so the
    rows are read once to measure and once to mix. A row that is not finite is left out first and
    lowers every f. ``after``: CenteredClipping starts from the last result behind NNM and
    Bucketing; behind Clipping, which is around the origin, it starts from there each time.

    Args:
        *steps: Any number of mixings, then one rule.

    Raises:
        TypeError: A step before the last is no mixing, or the last is no rule.
        ValueError: CenteredClipping has an m behind Clipping.

    Example:
        >>> import numpy as np
        >>> from mpisign.robust import NNM, Median
        >>> Pipeline(NNM(f=1), Median())(np.array([[0.0], [2.0], [90.0]])).tolist()
        [1.0]
    """

    mixings: tuple[Mixing, ...]
    rule: Rule

    def __init__(self, *steps: Rule) -> None:
        for step in steps[:-1]:
            if not isinstance(step, Mixing):
                raise TypeError(f"Pipeline: all but the last must be mixings, got {step!r}")
        if not steps or not isinstance(steps[-1], Rule) or isinstance(steps[-1], Mixing):
            raise TypeError(f"Pipeline: the last must be a rule, got {steps[-1:]!r}")
        object.__setattr__(self, "mixings", tuple(steps[:-1]))
        object.__setattr__(self, "rule", steps[-1])
        if self.center is not None and not self._moves_along():
            raise ValueError("Pipeline: CenteredClipping must have no m behind Clipping, got one")

    @property
    def needs(self) -> Needs:
        steps = [step.needs for step in (*self.mixings, self.rule)]
        if "distances" in steps or "norms" in steps[1:]:
            return "distances"
        return "norms" if "norms" in steps else "nothing"

    @property
    def only_compares(self) -> bool:
        return all(step.only_compares for step in (*self.mixings, self.rule))

    @property
    def center(self) -> Any:
        return self.rule.center

    def after(self, result: Any) -> Self:
        rule = self.rule.after(result)
        if rule is self.rule or not self._moves_along():
            return self
        return type(self)(*self.mixings, rule)

    def check(self, n: int) -> None:
        for mixing in self.mixings:
            mixing.check(n)
            n = mixing.count(n)
        self.rule.check(n)

    def fewer(self, k: int) -> Self:
        return type(self)(*(step.fewer(k) for step in (*self.mixings, self.rule)))

    def weights(self, squared: Floats | None, n: int, rng: Random) -> Floats | None:
        mixed: Floats | None = None
        for i, mixing in enumerate(self.mixings):
            weights = mixing.weights(squared, n, rng)
            if weights is None:
                continue
            mixed = weights if mixed is None else weights @ mixed
            n = len(weights)
            if any(step.needs_distances for step in (*self.mixings[i + 1 :], self.rule)):
                assert squared is not None
                squared = squared_mixed(weights, squared)
        weights = self.rule.weights(squared, n, rng)
        if weights is None or mixed is None:
            return mixed if weights is None else weights
        return weights @ mixed

    def reduce(self, Y: Any, *, flags: Flags | None = None) -> Any:
        return self.rule.reduce(Y, flags=flags)

    def _moves_along(self) -> bool:
        return all(mixing.moves_along for mixing in self.mixings)
