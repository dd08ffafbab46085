"""One rank's part in a vote, and the arithmetic that every voting algorithm shares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from mpisign import planes, policies
from mpisign.detox.assignment import Partition
from mpisign.engine.header import INLINE_NBYTES
from mpisign.errors import WireError
from mpisign.stats import stage, stats

Planes = npt.NDArray[np.uint8]

_OVERLAP = 16  # chunks that suffice to hide one behind the others
_MOST = 1024


@dataclass(slots=True)
class VoteTask:
    """What is voted on, piece by piece, so that packing, exchange and tally overlap.

    ``pack(a, b, out)`` writes bytes [a, b) of this rank's planes to ``out``, uint8 (k, b - a),
    k = 2 with a mask plane; ``unpack(a, b, result)`` reads the same bytes of the result,
    (kd, b - a), kd = 2 if ties are zero. Both are called for one chunk after the other, from 0 to
    ``nbytes``. ``weights``: one a rank, or None. All but the two functions is agreed.

    ``groups``: ranks that vote among themselves first, then their majorities; a group that ties
    abstains. Stacks then hold rows in the groups' order: ``rows`` says whose lie where.
    """

    length: int
    k: int
    ties: policies.Ties
    seed: int
    step: int
    pack: Callable[[int, int, Planes], None]
    unpack: Callable[[int, int, Planes], None]
    weights: Sequence[float] | None = None
    groups: Partition | None = None
    nbytes: int = field(init=False)  # of a plane
    order: list[int] | None = field(init=False)  # ranks by rows, None: as they are

    def __post_init__(self) -> None:
        self.nbytes = planes.plane_bytes(self.length)
        self.order = None if self.groups is None else [r for g in self.groups for r in g]

    @property
    def kd(self) -> int:
        """Planes of the result."""
        return policies.planes_down(self.ties)

    def chunks(self, message: int, parts: int) -> list[tuple[int, int]]:
        """Byte ranges [a, b) that travel one after the other, each cut into ``parts`` messages.

        ``message``: the transport's. Depends on what all ranks know alone.
        """
        overlap = min(_OVERLAP, self.nbytes // (4 * message))
        n = max(1, overlap, min(_MOST, self.nbytes // (parts * message)))
        bounds = [self.nbytes * i // n for i in range(n + 1)]
        return list(zip(bounds, bounds[1:], strict=False))

    def short(self, message: int) -> bool:
        """Whether all is packed before anything is sent: what travels in headers must be."""
        return self.nbytes <= max(4 * message, INLINE_NBYTES)

    def coordinates(self, a: int, b: int) -> int:
        """How many coordinates bytes [a, b) hold."""
        return max(0, min(self.length, 8 * b) - 8 * a)

    def rows(self, size: int) -> Sequence[int]:
        """Where in a stack of all ``size`` ranks' planes each rank's lie."""
        if self.order is None:
            return range(size)
        places = [0] * size
        for row, rank in enumerate(self.order):
            places[rank] = row
        return places

    def by_rows(self, stack: Any) -> Any:
        """A stack in the ranks' order as ``tally`` takes it."""
        return stack if self.order is None else stack[self.order]

    def tally(self, stack: Any, first: int, out: Any, weights: Any = None) -> None:
        """The majority of ``stack`` (n, k, b), bytes [first, first + b) of the ballots: (kd, b).

        The random bits of ties depend on the place in the whole ballot alone, so that any shard is
        decided alike by whoever tallies it. ``weights``: of the rows, default the ranks'. With
        ``groups``, how far each rank is from its group's vote is booked in ``mpisign.stats``.
        """
        b = stack.shape[2]
        if b == 0:
            return
        rows = stack if stack.shape[1] == 2 else stack[:, 0]
        length = self.coordinates(first, first + b)
        with stage("vote"):
            group = 1
            if self.groups is not None:
                group = len(self.groups[0])
                self._book_distances(rows, length)
                if any(len(g) != group for g in self.groups):
                    rows, group = self._group_votes(rows, length), 1
            planes.majority(
                rows,
                length=length,
                ties=self.ties,
                weights=self.weights if weights is None else weights,
                group=group,
                seed=self.seed,
                step=self.step,
                offset=8 * first,
                out=out if len(out) == 2 else out[0],
            )

    def _group_votes(self, rows: Any, length: int) -> list[Any]:
        """The votes of groups of unlike sizes, each (2, b): a group that ties abstains."""
        return [planes.majority(part, length=length, ties="zero") for part in self._parts(rows)]

    def _book_distances(self, rows: Any, length: int) -> None:
        assert self.groups is not None
        if len({len(g) for g in self.groups}) == 1:
            differing = planes.group_distances(rows, group=len(self.groups[0]), length=length)
        else:
            differing = np.concatenate(
                [
                    planes.group_distances(part, group=len(part), length=length)
                    for part in self._parts(rows)
                ]
            )
        stats().add_distances(self.groups, length, differing.tolist())

    def _parts(self, rows: Any) -> list[Any]:
        assert self.groups is not None
        ends = np.cumsum([0, *map(len, self.groups)])
        return [rows[a:b] for a, b in pairwise(ends.tolist())]

    def check_padding(self, stack: Any, first: int, ranks: Sequence[int] | None = None) -> None:
        """WireError if a rank's planes in ``stack`` (ranks, k, b) have bits beyond the length.

        ``ranks``: whose rows they are, default 0, 1, ...
        """
        b = stack.shape[2]
        if b == 0 or first + b < self.nbytes or self.length % 8 == 0:
            return
        good = planes.padding_is_zero(stack, self.coordinates(first, first + b))
        order = self.order if ranks is None and len(stack) == len(self.order or ()) else ranks
        for row, planes_good in enumerate(good.reshape(len(stack), -1).tolist()):
            if not all(planes_good):
                rank = row if order is None else order[row]
                raise WireError(f"rank {rank} sent planes with padding not 0")
