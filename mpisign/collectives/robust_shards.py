"""Robust rules on shards: rank r reduces coordinates of shard r, and no rank holds all rows."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpisign.backend import arrays
from mpisign.engine.agreement import name_ranks
from mpisign.engine.pipeline import pipelined
from mpisign.errors import CollectiveError, NaNError, WireError
from mpisign.robust import rows
from mpisign.robust.base import FINER, FINEST, Rule
from mpisign.robust.stack import centered
from mpisign.stats import stage
from mpisign.transports.base import Pending, Steps
from mpisign.transports.tagged import TaggedTransport

Flags = np.ndarray[Any, np.dtype[np.bool_]]

_PIECE = 1 << 16  # coordinates of a shard that travel together, at least
_PIECES = 16


class Shards:
    """``length`` coordinates in ``size`` shards of ``pieces`` pieces each: alike on all ranks.

    Shard r is [d r // p, d (r + 1) // p), piece i of its w coordinates [w i // n, w (i + 1) // n).
    """

    def __init__(self, length: int, size: int) -> None:
        self.length, self.size = length, size
        self.pieces = max(1, min(_PIECES, length // size // _PIECE))

    def whole(self, rank: int) -> slice:
        """The coordinates of a rank's shard."""
        return slice(self.length * rank // self.size, self.length * (rank + 1) // self.size)

    def piece(self, rank: int, i: int) -> slice:
        """Those of one piece of it."""
        shard, n = self.whole(rank), self.pieces
        a, w = shard.start, shard.stop - shard.start
        return slice(a + w * i // n, a + w * (i + 1) // n)


@dataclass(frozen=True)
class _Plan:
    """What is left to do to a piece. ``weights``: float64 (m, n), None: ``kept`` are not mixed."""

    rule: Rule
    kept: Any
    weights: Any


class Reduction:
    """An owner's part in one rule on n rows that lie in shards.

    ``out``: float32 or float64 (d,), written to whole. ``rng`` is copied, never drawn from: the
    same on all ranks. ``name`` of a row, for messages, such as "rank 3"; ``why`` none may be left;
    ``told``: rows of which a warning is out.

    Wire: where the rule measures, all n (n + 1) / 2 partial squared distances of the shard (rows i
    < j, the origin last; norms alone where those are enough), float64, to all; [i, origin] is
    infinite where row i is not finite here. Then this rank's shard of the result, to all, in
    pieces.
    """

    def __init__(
        self,
        wire: TaggedTransport,
        shards: Shards,
        rule: Rule,
        rng: np.random.Generator,
        out: Any,
        lost: Flags,
        *,
        function: str,
        name: Callable[[int], str],
        why: str = "not one is finite",
        told: set[int] | None = None,
    ) -> None:
        self._line, self._shards, self._rule, self._rng = wire, shards, rule, rng
        self._out, self._lost = out, lost
        self._function, self._name, self._why = function, name, why
        n = self._n = len(lost)
        self._partial = np.zeros((n + 1, n + 1))
        self._here = ~lost  # rows that are finite in this shard
        self._told: set[int] = told or set()
        if rule.needs == "norms":
            self._pairs: Any = (np.arange(n), np.full(n, n))
        else:
            self._pairs = np.triu_indices(n + 1, 1)
        center = rule.center
        self._center = None if center is None else arrays.host(center).astype(out.dtype)
        self._plan: _Plan | None = None
        self._by_most = np.zeros(n, dtype=bool)  # rows that most owners say are not finite
        self._scale = 1.0 if out.dtype == np.float64 else FINEST  # of what is measured

    def steps(self, pieces: Sequence[Any], send: Callable[[int], Pending | None]) -> Steps[None]:
        """The rule on ``pieces`` (n, w) of this rank's shard, which ``send(i)`` has come.

        Rows that are lost are never read. ``pieces`` are not kept as they are.
        """
        n, pieces = self._shards.pieces, list(pieces)
        if not self._rule.needs_distances:
            self._plan = self._planned(self._lost, None)
            yield from pipelined(n, send, lambda i: self._reduce(i, pieces[i]), _nothing)
            return

        def measure(i: int) -> None:
            pieces[i] = self._centered(i, pieces[i])
            pieces[i][self._lost] = 0
            self._measure(pieces[i])

        yield from pipelined(n, send, measure)
        squared, claimed = yield from self._agree()
        while self._scale < FINEST and self._rule.underflows(squared, ~(self._lost | claimed)):
            self._scale *= FINER
            self._partial[...] = 0
            for x in pieces:
                self._measure(x * self._scale)
            squared, claimed = yield from self._agree()
        self._plan = self._planned(self._lost | self._by_most, squared, claimed & ~self._by_most)
        yield from pipelined(n, lambda i: self._reduce(i, pieces[i]), _nothing)

    def _measure(self, x: Any) -> None:
        with stage("vote"):
            flags = np.ones(self._n, dtype=bool)
            if x.shape[1]:
                with np.errstate(invalid="ignore", over="ignore"):
                    measured = self._rule.measure(x, flags=flags)
                assert measured is not None
                self._partial += measured
            self._here &= flags

    def _agree(self) -> Steps[tuple[Any, Flags]]:
        """Everybody's partial distances, added up in the order of ranks; rows that some owner says
        are not finite."""
        n = self._n
        away = ~self._here
        self._partial[:n][away] = self._partial[:, :n][:, away] = 0
        self._partial[:n, n][away & ~self._lost] = np.inf
        table = np.empty((self._line.size, len(self._pairs[0])), dtype="<f8")
        mine = self._partial[self._pairs].astype("<f8")
        yield self._line.allgather(mine.view(np.uint8), table.view(np.uint8))
        may = self._pairs[1] == n  # be infinite
        total = np.zeros(table.shape[1])
        for rank, row in enumerate(table):
            if not ((row >= 0) & (may | np.isfinite(row))).all():
                raise WireError(f"rank {rank} sent a squared distance that is no number from 0")
            with np.errstate(over="ignore"):
                total += row
        # What follows from owners' tables breaks the wire: they may have told others other things.
        if not np.isfinite(total[~may]).all():
            most = int(table[:, ~may].max(axis=1).argmax())
            raise WireError(f"squared distances overflow, most of all those that rank {most} sent")
        squared = np.zeros((n + 1, n + 1))
        squared[self._pairs] = total
        squared += squared.T
        owners = np.isinf(table[:, may]).sum(axis=0)  # who say that a row is not finite
        claimed = (owners > 0) & ~self._lost
        squared[np.isinf(squared)] = 0
        new = claimed & ~np.isin(np.arange(n), list(self._told))
        if new.any():
            by = name_ranks(np.flatnonzero(np.isinf(table).any(axis=1)).tolist())
            names = ", ".join(self._name(r) for r in np.flatnonzero(new).tolist())
            self._told.update(np.flatnonzero(new).tolist())
            warnings.warn(
                f"{self._function}: by the word of {by}, who may lie, {names} sent nothing that is "
                "finite: left out",
                RuntimeWarning,
                2,
            )
        self._by_most = claimed & (2 * owners > self._line.size)
        return squared, claimed

    def _planned(self, lost: Flags, squared: Any, claimed: Flags | None = None) -> _Plan:
        """The rule for the rows that are left; the same, or the same error, on all ranks.

        ``claimed``: rows that are lost by the word of a few owners, which lowers no f.
        """
        away = lost if claimed is None else lost | claimed
        n, kept = self._n, np.flatnonzero(~away)
        by_word = claimed is not None and claimed.any()
        if not kept.size and not by_word:
            raise NaNError(f"{self._function}: none of {n} rows is left: {self._why}")
        rule = self._rule.left_with(kept.size, int(lost.sum()))
        try:
            rule.check(kept.size)
        except ValueError as error:
            text = f"{n - kept.size} of {n} rows were left out, and {error}"
            if by_word:
                raise WireError(text) from None
            raise CollectiveError(f"{self._function}: {text}") from None
        if squared is not None:
            squared = squared[np.ix_([*kept, n], [*kept, n])]
        weights = rule.weights(squared, kept.size, copy.deepcopy(self._rng))
        if weights is not None:
            full = np.zeros((len(weights), n))
            full[:, kept] = weights
            weights = full
        return _Plan(rule, slice(None) if kept.size == n else kept, weights)

    def _reduce(self, i: int, x: Any) -> Pending:
        own = self._shards.piece(self._line.rank, i)
        with stage("vote"):
            if own.stop > own.start:
                if not self._rule.needs_distances:
                    x = self._centered(i, x)
                assert self._plan is not None
                result, finite = self._apply(self._plan, x)
                if not (finite | self._rule.needs_distances).all():
                    result, _ = self._apply(self._without(~finite), x)
                if self._center is not None:
                    result = result + self._center[own]
                self._out[own] = result
        sent = self._out[own].view(np.uint8)
        parts = [self._out[self._shards.piece(r, i)].view(np.uint8) for r in range(self._line.size)]
        return self._line.allgather(sent, parts)

    def _apply(self, plan: _Plan, x: Any) -> tuple[Any, Flags]:
        """The result of a piece, and which of the rows that it was made of are finite."""
        flags = np.ones(self._n, dtype=bool)
        if plan.weights is not None:
            return plan.rule.reduce(rows.mix(plan.weights, x, flags=flags)), flags
        y = x[plan.kept]
        of = np.ones(len(y), dtype=bool)
        result = plan.rule.reduce(y, flags=of)
        flags[plan.kept] = of
        return result, flags

    def _without(self, lied: Flags) -> _Plan:
        """The plan without the rows of those who said that they were finite, and lied.

        Of a rule that measures all owners hear of them; else this is a matter of this shard, whose
        coordinates are its owner's to decide anyway.
        """
        new = [r for r in np.flatnonzero(lied).tolist() if r not in self._told]
        self._told.update(new)
        names = ", ".join(self._name(r) for r in new)
        if names:
            warnings.warn(
                f"{self._function}: {names} sent what is not finite, and had said that it was: "
                "left out",
                RuntimeWarning,
                2,
            )
        try:
            return self._planned(self._lost | lied, None)
        except CollectiveError as error:  # on this rank alone
            raise WireError(str(error).removeprefix(f"{self._function}: ")) from None

    def _centered(self, i: int, x: Any) -> Any:
        if self._center is None:
            return x
        return centered("x", x, self._center[self._shards.piece(self._line.rank, i)])


def _nothing(i: int) -> None:
    """The end of a pipeline."""
