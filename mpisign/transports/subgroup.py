"""Some ranks of a transport as a transport of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mpisign.transports.base import Completed, LayeredTransport, Part, Pending, Transport


class SubgroupTransport(LayeredTransport):
    """``wire`` between ``ranks``, some of its ranks in the new order, this one among them.

    For host memory. Messages and tags are the wire's: no tag may be in use on both at a time.
    Notices go to all ranks of the wire; those from outside ``ranks`` are dropped.
    """

    name = "subgroup"

    def __init__(self, wire: Transport, ranks: Sequence[int]) -> None:
        super().__init__(wire)
        self._ranks = list(ranks)
        self.rank, self.size = self._ranks.index(wire.rank), len(self._ranks)

    def _exchange(self, sends: Sequence[Part], recvs: Sequence[Part], tag: int) -> Pending:
        to, of = ([(self._ranks[r], part) for r, part in parts] for parts in (sends, recvs))
        return _Renumbered(self.wire._exchange(to, of, tag), self._ranks)

    def start_allreduce(self, values: np.ndarray[Any, Any], tag: int) -> Completed:
        every = np.empty((self.size, values.nbytes), dtype=np.uint8)
        self.start_allgather(values.view(np.uint8), list(every), tag).wait()
        every.view(values.dtype).sum(axis=0, out=values)
        return Completed()

    def notices(self) -> list[tuple[int, bytes]]:
        place = {rank: i for i, rank in enumerate(self._ranks)}
        return [(place[r], notice) for r, notice in self.wire.notices() if r in place]

    def free(self) -> None:
        """Leaves ``wire`` as it is: others use it."""


class _Renumbered:
    """The wire's exchange; ranks by their numbers in the subgroup."""

    def __init__(self, pending: Pending, ranks: Sequence[int]) -> None:
        self.done, self.wait = pending.done, pending.wait
        self._pending, self._ranks = pending, ranks

    def missing(self) -> list[int] | None:
        missing = self._pending.missing()
        return None if missing is None else sorted(map(self._ranks.index, missing))
