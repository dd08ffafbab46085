"""The interface between collectives and wires: bytes from rank to rank, nothing else."""

from __future__ import annotations

import functools
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from mpisign.errors import WireError
from mpisign.stats import begin_exchange, count_bytes, count_stage

Bytes = npt.NDArray[np.uint8]
#: What goes to, or comes from, one rank: its number, and contiguous uint8 memory (n,).
Part = tuple[int, Bytes]

#: Exchanges of that many collectives may be in flight on one transport.
TAGS = 64
#: The tag of first rounds on transports where they have one of their own: see ``first_tag``.
FIRST = TAGS
_SPIN = 5e-3  # seconds of polling without a pause: longer than most exchanges in a node take
#: Bytes of a notice: see ``Transport.post``.
NOTICE = 512
#: The notice of a rank whose program ends: it will send nothing more.
LEFT = b"left"


class LostRankError(WireError):
    """The wire broke because a rank is gone, and does not know which one."""


class Pending(Protocol):
    """An exchange in flight. It owns the memory of its parts until it has completed."""

    def done(self) -> bool:
        """True once ``wait`` would return at once; makes progress and never blocks."""

    def wait(self, seconds: float | None = None) -> bool:
        """Blocks until the exchange has completed, at most ``seconds``; whether it has.

        Raises WireError, naming the rank, if a message had another size than its part. ``done`` and
        ``wait`` of an exchange that failed raise the same error every time.
        """

    def missing(self) -> list[int] | None:
        """The ranks whose parts have not arrived; None where the wire does not know."""


class Completed:
    """An exchange that completed before it returned, or that needed no wire."""

    def done(self) -> bool:
        return True

    def wait(self, seconds: float | None = None) -> bool:
        return True

    def missing(self) -> list[int] | None:
        return []


class Failed:
    """An exchange that the wire would not start: whoever waits for it meets the error."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def done(self) -> bool:
        raise self.error

    def wait(self, seconds: float | None = None) -> bool:
        raise self.error

    def missing(self) -> list[int] | None:
        return None


class FirstRound:
    """The first exchange of a call: ``wrong`` says why what arrived is not what was due.

    Another rank may have called something else: that is no failure of the wire.
    """

    first = True

    def __init__(self, pending: Pending) -> None:
        self._pending = pending
        self.wrong = ""

    def done(self) -> bool:
        if self.wrong:
            return True
        try:
            return self._pending.done()
        except LostRankError:
            raise
        except WireError as error:
            self.wrong = str(error)
            return True

    def wait(self, seconds: float | None = None) -> bool:
        if self.wrong:
            return True
        try:
            return self._pending.wait(seconds)
        except LostRankError:
            raise
        except WireError as error:
            self.wrong = str(error)
            return True

    def missing(self) -> list[int] | None:
        return [] if self.wrong else self._pending.missing()


class Prepared:
    """A first round with the same parts call after call; the transport may keep requests for it.

    ``rooms``: the memory of each part of ``recvs``, which goes on behind it up to
    ``Transport.room`` bytes.
    """

    def __init__(
        self,
        transport: Transport,
        sends: Sequence[Part],
        recvs: Sequence[Part],
        rooms: Sequence[Bytes],
    ) -> None:
        self.transport = transport
        self.sends, self.recvs, self.rooms = sends, recvs, rooms
        self.sent = sum(part.nbytes for _, part in sends)
        self.received = sum(part.nbytes for _, part in recvs)

    def start(self, tag: int) -> FirstRound:
        """Starts it with a tag of ``Transport.first_tag``, once the last start has completed."""
        count_bytes(self.sent, self.received)
        return self.transport._first_round(self.sends, self.recvs, self.rooms, tag)

    def free(self) -> None:
        """Releases what the transport keeps."""


class Polled(ABC):
    """An exchange that ``done`` alone moves on. One that failed raises its first error again."""

    over = False
    error: Exception | None = None

    @abstractmethod
    def _advance(self) -> bool:
        """Whether it is over; makes progress. Not called again once it was, or raised."""

    def done(self) -> bool:
        if self.over:
            return True
        if self.error is not None:
            # Looked at again, a wire would say that all is well, or accuse another rank.
            raise self.error
        try:
            self.over = self._advance()
        except Exception as error:
            self.error = error
            raise
        return self.over

    def wait(self, seconds: float | None = None) -> bool:
        start = begin_exchange()
        try:
            return poll(self, seconds)
        finally:
            count_stage("exchange", start)

    def missing(self) -> list[int] | None:
        return None


class Transport(ABC):
    """A wire between ``size`` ranks, of which this process is ``rank``.

    ``ordered``: exchanges match in the order in which they were started, whatever their tags, so
    that collectives must run one after another. ``device``: "cpu" or "cuda", where parts lie.
    ``measurable``: False where the time of an exchange says nothing about a network. ``sleeps``:
    ``Pending.wait`` sleeps instead of polling. ``message``: a good size of messages in bytes. The
    default is what Open MPI and MPICH send over TCP eagerly, without a handshake with a receiver
    that answers only inside MPI. ``first_message``: the most bytes of a message in a first
    round; ``framed``: all of these have as many, where a wire cannot bear another size than is due;
    ``room``: bytes of memory that each of them needs where it arrives, however few are due.
    ``gathers``: a rank sends the same one to all. ``threaded``: threads of the wire move exchanges
    on, and need a core while this one waits. ``ended``: why it cannot be used any more, if so.
    ``what``: the next exchange sends, for transports whose exchanges have names that people see.
    ``bulk``: the next exchange sends much, on all ranks, for transports that then go another way.

    All ranks call the methods that start something; ``post`` and ``notices`` are not collective.
    """

    name: ClassVar[str]
    ordered: ClassVar[bool] = False
    device: ClassVar[str] = "cpu"
    measurable: ClassVar[bool] = True
    sleeps: bool = False
    message: int = 48 << 10
    first_message: int = 32 << 10
    framed: bool = False
    room: int = 0
    gathers: bool = False
    threaded: bool = False
    ended: str = ""
    what: str = ""
    bulk: bool = False
    rank: int
    size: int

    @abstractmethod
    def _exchange(self, sends: Sequence[Part], recvs: Sequence[Part], tag: int) -> Pending:
        """``start_exchange`` without counting bytes."""

    def start_exchange(self, sends: Sequence[Part], recvs: Sequence[Part], tag: int) -> Pending:
        """Sends every part of ``sends`` into the part of ``recvs`` that its rank has for this one.

        All ranks call it, some with nothing to send or to receive. Parts between two ranks match in
        order, within an exchange and through all exchanges with one ``tag``, from 0 to ``TAGS`` -
        1; tags do not mix. A rank sends nothing to itself. Both sides may leave out parts of length
        0. Counts the bytes in ``mpisign.stats``.
        """
        sent = received = 0
        for _, part in sends:
            sent += part.nbytes
        for _, part in recvs:
            received += part.nbytes
        count_bytes(sent, received)
        return self._exchange(sends, recvs, tag)

    def first_tag(self, tag: int) -> int:
        """The tag of the first round of the call with ``tag``.

        The first rounds of all calls start in the order of the calls, so that they may share one.
        """
        return tag

    def prepare(
        self, sends: Sequence[Part], recvs: Sequence[Part], rooms: Sequence[Bytes]
    ) -> Prepared:
        """A first round for many calls. One part a rank; all ranks exchange with all others."""
        return Prepared(self, sends, recvs, rooms)

    def _first_round(
        self, sends: Sequence[Part], recvs: Sequence[Part], rooms: Sequence[Bytes], tag: int
    ) -> FirstRound:
        """An exchange that takes whatever arrives: its end does not raise."""
        return FirstRound(self._exchange(sends, recvs, tag))

    def start_allgather(self, send: Bytes, rows: Sequence[Bytes], tag: int) -> Pending:
        """Sends rank r's ``send`` into every rank's ``rows[r]``, its own included.

        ``rows``: one uint8 array a rank, of lengths that all ranks know.
        """
        if rows[self.rank] is not send:
            rows[self.rank][...] = send
        sends, recvs = [], []
        for r in self.others:
            sends.append((r, send))
            recvs.append((r, rows[r]))
        return self.start_exchange(sends, recvs, tag)

    @abstractmethod
    def start_allreduce(self, values: npt.NDArray[Any], tag: int) -> Pending:
        """Sums over the ranks, in place, float32 or float64, by the wire's own reduction.

        The baseline for votes. May complete before it returns.
        """

    def post(self, notice: bytes) -> None:  # noqa: B027
        """Sends at most ``NOTICE`` bytes to all other ranks, outside any exchange; never blocks.

        A rank that gives up posts why, so that the others do not wait for it. Best effort.
        """

    def notices(self) -> list[tuple[int, bytes]]:
        """(rank, notice) of what other ranks posted since the last call; never blocks."""
        return []

    def lost(self, error: Exception) -> bool:
        """Whether ``error`` of an exchange says that a rank is gone, but not which one."""
        return isinstance(error, LostRankError)

    def sleep(self, seconds: float) -> None:
        """Sleeps; other ranks of this process run meanwhile."""
        time.sleep(seconds)

    def settle(self, part: Any) -> None:  # noqa: B027
        """Blocks until exchanges that are over have written their parts, of which one is ``part``.

        For clocks: of device memory what is queued behind an exchange sees them anyway.
        """

    def abort(self) -> None:  # noqa: B027
        """Gives up all exchanges in flight; the transport cannot be used afterwards."""

    def free(self) -> None:  # noqa: B027
        """Frees the wire's resources, once nothing is in flight. Collective."""

    @property
    def frame(self) -> int:
        """Bytes of every message of a first round, or 0."""
        return self.first_message if self.framed else 0

    @functools.cached_property
    def others(self) -> list[int]:
        """The other ranks, starting at the right neighbour, so that senders spread out."""
        return [(self.rank + i) % self.size for i in range(1, self.size)]


class LayeredTransport(Transport):
    """A transport over another one, ``wire``, which carries its notices."""

    def __init__(self, wire: Transport) -> None:
        self.wire = wire
        self.rank, self.size = wire.rank, wire.size

    def post(self, notice: bytes) -> None:
        self.wire.post(notice)

    def notices(self) -> list[tuple[int, bytes]]:
        return self.wire.notices()

    def lost(self, error: Exception) -> bool:
        return self.wire.lost(error)

    def abort(self) -> None:
        self.wire.abort()

    def free(self) -> None:
        self.wire.free()


def poll(pending: Pending | Polled, seconds: float | None) -> bool:
    """``Pending.wait`` by polling: often at first, then less and less."""
    start = time.perf_counter()
    while not pending.done():
        waited = time.perf_counter() - start
        if seconds is not None and waited >= seconds:
            return False
        # Ranks may share a core: yield it. Alone on a core this costs nothing.
        if waited < _SPIN:
            os.sched_yield()
        else:
            time.sleep(min(waited / 16, 1e-3))
    return True


T = TypeVar("T")
#: A collective: yields the exchanges it waits for, and returns its result.
Steps = Generator[Pending, None, T]
