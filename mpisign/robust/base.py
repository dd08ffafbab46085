"""The base of robust rules: drop rows that are not finite, mix rows by weights, reduce columns."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np

from mpisign.robust import rows
from mpisign.robust.arguments import check_count
from mpisign.robust.rows import Flags, Floats
from mpisign.robust.stack import centered, stacked, uncentered

Random = np.random.Generator | np.random.RandomState
Needs = Literal["nothing", "norms", "distances"]
_TINY, _LARGE = 2.0**-900, 2.0**360  # squared
#: What rows are multiplied by whose squared distances are too small for float64.
FINER = 2.0**300
FINEST = FINER**3


@dataclass(frozen=True)
class Rule:
    """An aggregate of n vectors, some of them hostile: ``rule(X)``, X (n, d) -> (d,).

    A rule is immutable and keeps nothing between calls. A subclass says what it measures of the
    rows (``needs``), how it mixes them (``weights``) and what it does per coordinate (``reduce``).
    Collectives run the same steps on shards of the columns: ``measure`` adds up over shards,
    ``weights`` uses nothing else, ``reduce`` works one column at a time.

    Example:
        >>> import numpy as np
        >>> from mpisign.robust import Median
        >>> Median()(np.array([[1.0, 5.0], [2.0, 6.0], [900.0, -900.0]])).tolist()
        [2.0, 5.0]
    """

    #: Whether the rule has an ``f``: the number of rows that may be hostile.
    has_f: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.has_f:
            check_count(self, "f", 0)

    @property
    def needs(self) -> Needs:
        """What ``weights`` uses: squared "distances", "norms" or "nothing"."""
        return "nothing"

    @property
    def needs_distances(self) -> bool:
        """Whether ``measure`` computes anything."""
        return self.needs != "nothing"

    @property
    def only_compares(self) -> bool:
        """Whether it asks which distances are larger, and has no length of its own, as a tau."""
        return not self.needs_distances

    @property
    def center(self) -> Any:
        """A vector (d,) that rows are centered on before they are measured. None: the origin."""
        return None

    def __call__(self, X: Any | Sequence[Any], *, rng: Random | None = None) -> Any:
        """The aggregate of the rows of X, which stays as it is.

        Args:
            X: NumPy or CuPy array or torch tensor (n, d), float32, float64, float16 or bfloat16,
                any strides; or a list of n vectors (d,). A row that is not finite (``rows.finite``)
                is left out and counts as one of the f hostile rows.
            rng: Draws what is random (Bucketing). Default: a fresh generator.

        Returns:
            A vector (d,) of X's framework, dtype and device.

        Raises:
            TypeError: X is of another type.
            ValueError: The rule needs more rows (``check``), or no row is finite.

        Example:
            >>> import numpy as np
            >>> from mpisign.robust import TrMean
            >>> TrMean(f=1)([np.array([v]) for v in (1.0, 2.0, 3.0, np.inf)]).tolist()
            [2.0]
        """
        name = type(self).__name__
        X = stacked(name, X)
        self.check(len(X))
        center = self.center
        if center is not None:
            rows_given, X = X, centered(name, X, center)
        rng = np.random.default_rng() if rng is None else rng
        flags = np.ones(len(X), dtype=bool)
        squared = self.measure(X, flags=flags)
        if squared is None:
            # Usually all rows are finite: a pass to check first would cost as much as the result.
            before = copy.deepcopy(rng)
            out = self._finish(X, None, rng, flags=flags)
            if not flags.all():
                out = self._of_finite(X, None, flags, before)
        else:
            scale = 1.0 if str(X.dtype).endswith("float64") else FINEST
            while scale < FINEST and self.underflows(squared, flags):
                scale *= FINER
                squared = self.measure(X * scale, flags=flags)
                assert squared is not None
            out = self._of_finite(X, squared, flags, rng)
        return out if center is None else uncentered(name, out, center, rows_given)

    def _of_finite(self, X: Any, squared: Floats | None, finite: Flags, rng: Random) -> Any:
        """The result of the finite rows, given the measurements of all rows."""
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
        """Checks that n rows suffice; called before any row is left out.

        If n rows pass, n - k rows pass with ``fewer(k)``, k < n.

        Args:
            n: Number of rows.

        Raises:
            ValueError: They are too few.

        Example:
            >>> from mpisign.robust import Krum
            >>> Krum(f=2).check(5)
        """
        if n < 1:
            raise ValueError(f"{type(self).__name__}: X must have at least one row, got {n}")
        f = getattr(self, "f", 0)
        if 2 * f >= n:
            raise ValueError(f"{type(self).__name__}: 2 f must be below n, got f={f}, n={n}")

    def fewer(self, k: int) -> Self:
        """The rule for the rest when k hostile rows are left out.

        Args:
            k: Number of rows left out, from 0.

        Returns:
            The rule with f - k, at least 0, in place of f.

        Example:
            >>> from mpisign.robust import TrMean
            >>> TrMean(f=3).fewer(1)
            TrMean(f=2)
        """
        if not self.has_f or not k:
            return self
        return replace(self, f=max(getattr(self, "f", 0) - k, 0))  # type: ignore[call-arg]

    def left_with(self, n: int, lost: int) -> Self:
        """The rule for the finite rows.

        Args:
            n: Number of rows that are finite.
            lost: Number of rows that were not.

        Returns:
            The rule itself if it accepts n rows, since those lost may have been honest; else the
            one with f reduced by as little as needed, at most by ``lost``. ``check`` may still
            refuse it.
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
        """``left_with`` the rows that are finite.

        Args:
            finite: bool (n,), which of all rows are.

        Returns:
            The rule for them.

        Raises:
            ValueError: No row is finite.
        """
        left = int(finite.sum())
        if not left:
            raise ValueError(
                f"{type(self).__name__}: X must have a row without NaN and infinity, "
                f"got {len(finite)} rows, none of them finite"
            )
        return self.left_with(left, len(finite) - left)

    def after(self, result: Any) -> Self:
        """The rule for the next call.

        Args:
            result: The result of this one, (d,).

        Returns:
            The rule itself, except for CenteredClipping.
        """
        return self

    def measure(self, X: Any, *, flags: Flags | None = None) -> Floats | None:
        """What ``weights`` needs to know of X (n, d).

        Args:
            X: The rows.
            flags: bool (n,), filled with which rows are finite.

        Returns:
            float64 (n + 1, n + 1): squared distances between rows and, last, the origin; with
            ``needs`` "norms" those to the origin, else 0. None for "nothing". Entries of rows that
            are not finite are arbitrary. Sums over shards of the columns.
        """
        if self.needs == "nothing":
            return None
        if self.needs == "distances":
            return rows.squared_distances(X, flags=flags)
        norms = np.zeros((len(X) + 1, len(X) + 1))
        norms[-1, :-1] = norms[:-1, -1] = rows.squared_norms(X, flags=flags)
        return norms

    def underflows(self, squared: Floats, finite: Flags) -> bool:
        """Whether squared distances of float64 rows are too small to be told apart.

        Then ``FINER`` times the rows are to be measured instead, up to ``FINEST`` in all.

        Args:
            squared: The result of ``measure``.
            finite: bool (n,), which rows are.

        Returns:
            True if all rows are closer together than 2^-450. If the rule has a length, they must
            be as close to the origin, or that length would be another beside what is measured.

        Example:
            >>> import numpy as np
            >>> from mpisign.robust import Krum
            >>> Krum(f=1).underflows(np.zeros((4, 4)), np.ones(3, bool))
            True
        """
        if self.needs != "distances" or not finite.any():
            return False
        among = np.flatnonzero(finite)
        far, most = squared[among, -1].max(), squared[np.ix_(among, among)].max()
        return bool(most < _TINY and far < (_LARGE if self.only_compares else _TINY))

    def weights(self, squared: Floats | None, n: int, rng: Random) -> Floats | None:
        """How rows are mixed; depends on the arguments alone, so it is the same on all ranks.

        Args:
            squared: The result of ``measure``.
            n: Number of rows.
            rng: Draws what is random.

        Returns:
            float64 (m, n), or None if rows are not mixed (m = n). Where a row sums to less than 1,
            the rest is the origin's weight.
        """
        return None

    def reduce(self, Y: Any, *, flags: Flags | None = None) -> Any:
        """One vector of the mixed rows, per coordinate.

        Args:
            Y: The mixed rows (m, d).
            flags: bool (m,), filled with which rows are finite; only where the rule mixes none.

        Returns:
            A vector (d,); by default the mean.
        """
        if len(Y) == 1 and flags is None:
            return Y[0]
        return rows.mix(np.full((1, len(Y)), 1 / len(Y)), Y, flags=flags)[0]


@dataclass(frozen=True)
class Mixing(Rule):
    """A transformation of rows before a rule: ``mixing(X)``, (n, d) -> (m, d).

    Example:
        >>> import numpy as np
        >>> from mpisign.robust import NNM
        >>> NNM(f=1)(np.array([[0.0], [2.0], [90.0]])).tolist()
        [[1.0], [1.0], [46.0]]
    """

    #: Whether adding one vector to all rows adds it to all mixed rows.
    moves_along: ClassVar[bool] = True

    def count(self, n: int) -> int:
        """Returns the number of mixed rows.

        Args:
            n: Number of rows.
        """
        return n

    def reduce(self, Y: Any, *, flags: Flags | None = None) -> Any:
        """The mixed rows themselves."""
        if flags is not None:
            flags[:] = rows.finite(Y)
        return Y
