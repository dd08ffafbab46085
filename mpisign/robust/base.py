"""What a robust rule is: rows left out, perhaps mixed by weights, then reduced by coordinate."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np

from mpisign.robust import rows
from mpisign.robust.stack import like_rows, stacked

Floats = np.ndarray[Any, np.dtype[np.float64]]
Flags = np.ndarray[Any, np.dtype[np.bool_]]
Random = np.random.Generator | np.random.RandomState
Needs = Literal["nothing", "norms", "distances"]


@dataclass(frozen=True)
class Rule:
    """One vector of many, some of them hostile: ``rule(X)``, X (n, d) -> (d,).

    A rule is frozen and keeps nothing between calls. A subclass says what it needs to know of the
    rows (``needs``), how it mixes them (``weights``) and what it does coordinate by coordinate
    (``reduce``). Collectives run the same steps on shards of the columns: ``measure`` of all is the
    sum of the shards', ``weights`` looks at nothing else, ``reduce`` at one column at a time.
    """

    #: Whether ``f`` counts here: how many of the rows may be hostile.
    has_f: ClassVar[bool] = False

    @property
    def needs(self) -> Needs:
        """What ``weights`` looks at: squared distances, those to the origin alone, or nothing."""
        return "nothing"

    @property
    def needs_distances(self) -> bool:
        """Whether ``measure`` has anything to measure."""
        return self.needs != "nothing"

    @property
    def center(self) -> Any:
        """Subtracted from every row first and added to the result, (d,); None: the origin."""
        return None

    def __call__(self, X: Any | Sequence[Any], *, rng: Random | None = None) -> Any:
        """The rows' aggregate (d,), in X's framework and dtype, on its device; X is left as it was.

        X: NumPy or CuPy array or torch tensor (n, d), float32, float64, float16 or bfloat16, with
        any strides; or a list of n vectors (d,). A row that is not finite (``rows.finite``) is left
        out as if it had not come, and counts as one of the f that are hostile. ``rng`` draws what
        is random (Bucketing); default: a fresh generator.

        Raises TypeError for other types, ValueError if the rule cannot do with n rows (``check``)
        or no row is finite.
        """
        name = type(self).__name__
        X = stacked(name, X)
        self.check(len(X))
        center = self.center
        if center is not None:
            X = X - like_rows(name, center, X)
        rng = np.random.default_rng() if rng is None else rng
        flags = np.ones(len(X), dtype=bool)
        squared = self.measure(X, flags=flags)
        if squared is None:
            # As a rule all rows are finite: another pass to look would cost as much as the result.
            before = copy.deepcopy(rng)
            out = self._finish(X, None, rng, flags=flags)
            if not flags.all():
                out = self._of_finite(X, None, flags, before)
        else:
            out = self._of_finite(X, squared, flags, rng)
        return out if center is None else out + like_rows(name, center, X)

    def _of_finite(self, X: Any, squared: Floats | None, finite: Flags, rng: Random) -> Any:
        """The result of the finite rows alone, what was measured of all being known."""
        if finite.all():
            return self._finish(X, squared, rng)
        rule, kept = self.without(finite), np.flatnonzero(finite)
        if squared is None:
            return rule._finish(X[kept.tolist()], None, rng)
        among = np.append(kept, len(X))
        weights = rule.weights(squared[np.ix_(among, among)], len(kept), rng)
        if weights is None:
            return rule.reduce(X[kept.tolist()])
        # A row without weight is never read: the others need no copy.
        wide = np.zeros((len(weights), len(X)))
        wide[:, kept] = weights
        return rule.reduce(rows.mix(wide, X))

    def _finish(
        self, X: Any, squared: Floats | None, rng: Random, *, flags: Flags | None = None
    ) -> Any:
        weights = self.weights(squared, len(X), rng)
        if weights is None:
            return self.reduce(X, flags=flags)
        return self.reduce(rows.mix(weights, X, flags=flags))

    def check(self, n: int) -> None:
        """ValueError if the rule cannot deal with n rows; asked before any row is left out.

        What passes for n rows also passes for n - k rows and ``fewer(k)``, k < n.
        """
        if n < 1:
            raise ValueError(f"{type(self).__name__}: X must have at least one row, got {n}")
        f = getattr(self, "f", 0)
        if 2 * f >= n:
            raise ValueError(f"{type(self).__name__}: 2 f must be below n, got f={f}, n={n}")

    def fewer(self, k: int) -> Self:
        """The rule for the others when k hostile rows are left out: f - k, but at least 0."""
        if not self.has_f or not k:
            return self
        return replace(self, f=max(getattr(self, "f", 0) - k, 0))  # type: ignore[call-arg]

    def left_with(self, n: int, lost: int) -> Self:
        """The rule for the n rows that are left when ``lost`` others were not finite.

        Itself where it can deal with n: who was lost may have been honest. Else with an f as little
        smaller, by at most ``lost``, as it takes; ``check`` may still refuse that.
        """
        rule = self
        for k in range(lost + 1):
            rule = self.fewer(k)
            try:
                rule.check(n)
            except ValueError:
                continue
            break
        return rule

    def without(self, finite: Flags) -> Self:
        """``left_with`` the rows that are ``finite``; ValueError if there are none."""
        left = int(finite.sum())
        if not left:
            raise ValueError(
                f"{type(self).__name__}: X must have a row without NaN and infinity, "
                f"got {len(finite)} rows, none of them finite"
            )
        return self.left_with(left, len(finite) - left)

    def after(self, result: Any) -> Self:
        """The rule for the next call, given this one's result: itself, but for CenteredClipping."""
        return self

    def measure(self, X: Any, *, flags: Flags | None = None) -> Floats | None:
        """What ``weights`` wants to know of X: float64 (n + 1, n + 1), or None.

        Squared distances between the rows and, last, the origin; where ``needs`` is "norms" those
        to the origin, and 0 elsewhere. Of rows that are not finite: anything; ``flags``, bool (n,),
        is told which are. Adds up over shards of the columns.
        """
        if self.needs == "nothing":
            return None
        if self.needs == "distances":
            return rows.squared_distances(X, flags=flags)
        norms = np.zeros((len(X) + 1, len(X) + 1))
        norms[-1, :-1] = norms[:-1, -1] = rows.squared_norms(X, flags=flags)
        return norms

    def weights(self, squared: Floats | None, n: int, rng: Random) -> Floats | None:
        """How rows are mixed: float64 (m, n); None: they are not (m = n).

        ``squared``: of ``measure``. What is missing to 1 in a row's sum belongs to the origin.
        Decided by ``squared``, n and ``rng`` alone, as ranks must decide alike.
        """
        return None

    def reduce(self, Y: Any, *, flags: Flags | None = None) -> Any:
        """One vector (d,) of the mixed rows (m, d), by coordinate; by default their mean.

        ``flags``, bool (m,), is told which rows are finite, where the rule mixes none.
        """
        if len(Y) == 1 and flags is None:
            return Y[0]
        return rows.mix(np.full((1, len(Y)), 1 / len(Y)), Y, flags=flags)[0]


@dataclass(frozen=True)
class Mixing(Rule):
    """What prepares rows for a rule: ``mixing(X)``, (n, d) -> (m, d); not a rule by itself."""

    #: Whether rows that are all moved by one vector are mixed as before, and moved by it.
    moves_along: ClassVar[bool] = True

    def count(self, n: int) -> int:
        """How many rows it makes of n."""
        return n

    def reduce(self, Y: Any, *, flags: Flags | None = None) -> Any:
        """The mixed rows themselves."""
        if flags is not None:
            flags[:] = rows.finite(Y)
        return Y
