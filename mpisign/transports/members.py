"""Some ranks of a transport as a transport of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mpisign.transports.base import Over, Part, Pending, Transport


class Members(Transport):
    """``wire`` between ``members``, its ranks in the new order, this one among them.

    For host memory. Messages are the wire's, tags too: no tag may be in use on both at a time.
    Notices go to all ranks of the wire; from those outside they are dropped.
    """

    name = "members"

    def __init__(self, wire: Transport, members: Sequence[int]) -> None:
        self._wire = wire
        self._members = list(members)
        self.rank = self._members.index(wire.rank)
        self.size = len(self._members)

    def _exchange(self, sends: Sequence[Part], recvs: Sequence[Part], tag: int) -> Pending:
        to, of = ([(self._members[r], part) for r, part in parts] for parts in (sends, recvs))
        return _Renamed(self._wire._exchange(to, of, tag), self._members)

    def start_allreduce(self, values: np.ndarray[Any, Any], tag: int) -> Over:
        """Over when it returns: everyone's values to everyone."""
        every = np.empty((self.size, values.nbytes), dtype=np.uint8)
        self.start_allgather(values.view(np.uint8), list(every), tag).wait()
        every.view(values.dtype).sum(axis=0, out=values)
        return Over()

    def post(self, notice: bytes) -> None:
        self._wire.post(notice)

    def notices(self) -> list[tuple[int, bytes]]:
        place = {rank: i for i, rank in enumerate(self._members)}
        return [(place[r], notice) for r, notice in self._wire.notices() if r in place]

    def abort(self) -> None:
        self._wire.abort()


class _Renamed:
    """The wire's exchange, its ranks by their numbers here."""

    def __init__(self, pending: Pending, members: Sequence[int]) -> None:
        self._pending = pending
        self._members = members

    def done(self) -> bool:
        return self._pending.done()

    def wait(self, seconds: float | None = None) -> bool:
        return self._pending.wait(seconds)

    def missing(self) -> list[int] | None:
        missing = self._pending.missing()
        return None if missing is None else sorted(map(self._members.index, missing))
