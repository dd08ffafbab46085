"""A transport as one collective sees it: its exchanges never match those of another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mpisign.backend import arrays
from mpisign.transports.base import Bytes, Part, Pending, Transport


class Arena:
    """Host memory that a collective takes in the same order in every call."""

    def __init__(self) -> None:
        self._taken: list[Bytes] = []
        self._next = 0

    @property
    def nbytes(self) -> int:
        """Bytes of all that was taken."""
        return sum(memory.nbytes for memory in self._taken)

    def restart(self) -> None:
        """Begins a call."""
        self._next = 0

    def empty(self, shape: tuple[int, ...]) -> Bytes:
        """What the call before took at this place, or new memory whose pages are there."""
        i, self._next = self._next, self._next + 1
        if i == len(self._taken) or self._taken[i].shape != shape:
            memory = np.empty(shape, dtype=np.uint8)
            memory.fill(0)
            self._taken[i:] = [memory]
        return self._taken[i]


class TaggedTransport:
    """One tag of a transport. ``rank``, ``size``, ``others``: the transport's.

    ``like``: an array of the framework and device that ``empty`` makes memory for, default NumPy.
    ``arena``: where ``empty`` takes it from instead. ``settled``: so many calls, from the first on,
    the program had waited for when it made this one. ``replica``: what the call says of replicas.
    """

    __slots__ = (
        "_arena",
        "_begun",
        "first_done",
        "like",
        "others",
        "rank",
        "replica",
        "settled",
        "size",
        "tag",
        "transport",
    )

    def __init__(
        self,
        transport: Transport,
        tag: int,
        like: arrays.View | None = None,
        arena: Arena | None = None,
        settled: int = 0,
    ) -> None:
        self.transport = transport
        self.tag = tag
        self.settled = settled
        self.replica: bytes | None = None
        self.rank = transport.rank
        self.size = transport.size
        self.others = transport.others
        self.like, self._arena = like, arena
        self._begun = False
        #: Whether ranks have exchanged a first round, whose messages say what each of them calls.
        self.first_done = False

    def first_tag(self) -> int:
        """The tag of this call's first round: the transport's, unless ranks exchanged before."""
        tag = self.tag if self._begun else self.transport.first_tag(self.tag)
        self._begun = self.first_done = True
        return tag

    def exchange(
        self, sends: Sequence[Part], recvs: Sequence[Part], what: str = "", bulk: bool = False
    ) -> Pending:
        """``Transport.start_exchange``. ``what``: is sent, the same word on all ranks; ``bulk``: so
        much that bandwidth matters, which all ranks must say alike.
        """
        self._begun = True
        self.transport.what = what
        self.transport.bulk = bulk
        return self.transport.start_exchange(sends, recvs, self.tag)

    def allgather(self, send: Bytes, rows: Any, bulk: bool = False) -> Pending:
        """``Transport.start_allgather``. ``bulk``: as in ``exchange``."""
        self._begun = True
        self.transport.bulk = bulk
        return self.transport.start_allgather(send, rows, self.tag)

    def allreduce(self, values: Any) -> Pending:
        """``Transport.start_allreduce``."""
        return self.transport.start_allreduce(values, self.tag)

    def empty(self, *shape: int) -> Any:
        """Uninitialised uint8 memory for parts."""
        if self._arena is not None:
            return self._arena.empty(shape)
        return arrays.empty(shape, "uint8", like=self.like)


class UncountedTransport(TaggedTransport):
    """A tagged transport whose bytes ``mpisign.stats`` does not count: no part of any vote."""

    __slots__ = ()

    def exchange(
        self, sends: Sequence[Part], recvs: Sequence[Part], what: str = "", bulk: bool = False
    ) -> Pending:
        self.transport.bulk = bulk
        return self.transport._exchange(sends, recvs, self.tag)

    def allgather(self, send: Bytes, rows: Any, bulk: bool = False) -> Pending:
        rows[self.rank][...] = send
        sends, recvs = [(r, send) for r in self.others], [(r, rows[r]) for r in self.others]
        return self.exchange(sends, recvs, bulk=bulk)
