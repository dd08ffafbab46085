"""One rank's part in a vote, and the arithmetic that every voting algorithm shares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mpisign import planes, policies
from mpisign.collectives.header import INLINE_NBYTES
from mpisign.errors import WireError
from mpisign.stats import stage

Planes = npt.NDArray[np.uint8]

_OVERLAP = 16  # chunks that suffice to hide one behind the others
_MOST = 1024


@dataclass(slots=True)
class Ballot:
    """What is voted on, piece by piece, so that packing, exchange and tally overlap.

    ``pack(a, b, out)`` writes bytes [a, b) of this rank's planes to ``out``, uint8 (k, b - a),
    k = 2 with a mask plane; ``unpack(a, b, result)`` reads the same bytes of the result,
    (kd, b - a), kd = 2 if ties are zero. Both are called for one chunk after the other, from 0 to
    ``nbytes``. ``weights``: one a rank, or None. All but the two functions is agreed.
    """

    length: int
    k: int
    ties: policies.Ties
    seed: int
    step: int
    pack: Callable[[int, int, Planes], None]
    unpack: Callable[[int, int, Planes], None]
    weights: Sequence[float] | None = None
    nbytes: int = field(init=False)  # of a plane

    def __post_init__(self) -> None:
        self.nbytes = planes.plane_bytes(self.length)

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

    def tally(self, stack: Any, first: int, out: Any, weights: Any = None) -> None:
        """The majority of ``stack`` (n, k, b), bytes [first, first + b) of the ballots: (kd, b).

        The random bits of ties depend on the place in the whole ballot alone, so that any shard is
        decided alike by whoever tallies it. ``weights``: of the rows, default the ranks'.
        """
        b = stack.shape[2]
        if b == 0:
            return
        with stage("vote"):
            planes.majority(
                stack if stack.shape[1] == 2 else stack[:, 0],
                length=self.coordinates(first, first + b),
                ties=self.ties,
                weights=self.weights if weights is None else weights,
                seed=self.seed,
                step=self.step,
                offset=8 * first,
                out=out if len(out) == 2 else out[0],
            )

    def check_padding(self, stack: Any, first: int, ranks: Sequence[int] | None = None) -> None:
        """WireError if a rank's planes in ``stack`` (ranks, k, b) have bits beyond the length.

        ``ranks``: whose rows they are, default 0, 1, ...
        """
        b = stack.shape[2]
        if b == 0 or first + b < self.nbytes or self.length % 8 == 0:
            return
        good = planes.padding_is_zero(stack, self.coordinates(first, first + b))
        for row, planes_good in enumerate(good.reshape(len(stack), -1).tolist()):
            if not all(planes_good):
                rank = row if ranks is None else ranks[row]
                raise WireError(f"rank {rank} sent planes with padding not 0")
