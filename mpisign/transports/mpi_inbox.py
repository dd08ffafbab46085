"""Receives over MPI that begin once it is known how long the message is.

Open MPI 4.1 writes a message that is longer than the memory of a posted receive whole behind it,
where it comes by remote memory access: in shared memory from 4 KiB on, over TCP at some sizes. A
matched probe tells the length before any byte is written.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from mpi4py import MPI

from mpisign.errors import WireError
from mpisign.transports.base import Bytes, Part, Polled


class Inbox:
    """What comes with one tag, or is awaited.

    All receives of its tag must go through it: a posted one would take messages out of turn.
    """

    def __init__(self, comm: MPI.Intracomm, tag: int, waiting: dict[int, Inbox]) -> None:
        """``waiting``: those of a transport, by tag, that await something."""
        self._probe, self._tag = comm.Improbe, tag
        self.waiting = waiting
        self._status = MPI.Status()
        self._awaited: dict[int, deque[tuple[Probed, int]]] = {}
        self._early: dict[int, deque[tuple[MPI.Message, int]]] = {}
        self._open = 0  # how many are awaited

    @property
    def busy(self) -> bool:
        """Whether something is awaited, or has come early."""
        return self._open > 0 or any(self._early.values())

    def expect(self, exchange: Probed, index: int, source: int) -> None:
        """Has the next message from ``source`` taken by ``exchange`` as its part ``index``."""
        early = self._early.get(source)
        if early:
            exchange.take(index, *early.popleft())
            return
        awaited = self._awaited.get(source)
        if awaited is None:
            awaited = self._awaited[source] = deque()
        awaited.append((exchange, index))  # the deque stays, for the next
        self._open += 1
        self.waiting[self._tag] = self

    def look_everywhere(self) -> None:
        """``look`` for all tags: what comes with another one may be what a rank waits to send."""
        if len(self.waiting) == 1:
            next(iter(self.waiting.values())).look()
            return
        for inbox in list(self.waiting.values()):
            inbox.look()

    def look(self) -> None:
        """Hands over what has come. One probe for all sources, for the sake of many ranks."""
        status = self._status
        while self._open:
            message = self._probe(MPI.ANY_SOURCE, self._tag, status)
            if message is None:
                return
            source, length = status.source, status.count
            awaited = self._awaited.get(source)
            if awaited:
                self._open -= 1
                if not self._open:
                    del self.waiting[self._tag]
                exchange, index = awaited.popleft()
                exchange.take(index, message, length)
            else:
                self._early.setdefault(source, deque()).append((message, length))


class Probed(Polled):
    """Messages to send, in flight, and parts that the inbox fills."""

    first = False
    wrong = ""

    def __init__(self, inbox: Inbox, recvs: Sequence[Part], keep: Any) -> None:
        self._inbox, self._recvs, self._keep = inbox, recvs, keep
        self._waiting = inbox.waiting
        self._requests: list[Any] = []
        self._unseen = [source for source, _ in recvs]
        index = 0
        for source, _ in recvs:
            inbox.expect(self, index, source)
            index += 1

    def sent(self, request: Any) -> None:
        """A message that is on its way."""
        self._requests.append(request)

    def take(self, index: int, message: MPI.Message, length: int) -> None:
        """The message for part ``index``."""
        source, part = self._recvs[index]
        self._unseen.remove(source)
        if length == part.nbytes:
            self._requests.append(message.Irecv(part))
        else:
            text = f"rank {source} sent {length} bytes where {part.nbytes} were due"
            self._refuse(index, message, length, text)

    def _refuse(self, index: int, message: MPI.Message, length: int, text: str) -> None:
        self._keep = (self._keep, message)
        if self.error is None:
            self.error = WireError(text)

    def _advance(self) -> bool:
        if self._waiting:
            self._inbox.look_everywhere()
        if self.error is not None:
            raise self.error
        if self._unseen:
            return False
        try:
            over: bool = MPI.Request.Testall(self._requests)
        except MPI.Exception as error:
            raise WireError(f"MPI could not exchange: {error}") from error
        if over:
            self._recvs = self._keep = ()
        return over

    def missing(self) -> list[int] | None:
        """Ranks whose messages have not come; None if only sends or copies are left."""
        if self.over:
            return []
        return sorted(set(self._unseen)) or None

    def cancel(self) -> None:
        """Nothing is posted that could be cancelled."""


class FirstProbed(Probed):
    """A first round: completes once something has come from all, whatever it is.

    ``rooms``: the memory of each part, which goes on behind it.
    """

    first = True

    def __init__(self, inbox: Inbox, recvs: Sequence[Part], rooms: Sequence[Bytes]) -> None:
        self._rooms = rooms
        super().__init__(inbox, recvs, rooms)

    def _refuse(self, index: int, message: MPI.Message, length: int, text: str) -> None:
        self.wrong = self.wrong or text
        room = self._rooms[index]
        if length <= room.nbytes:
            self._requests.append(message.Irecv([room[:length], MPI.BYTE]))
        else:
            self._keep = (self._keep, message)
