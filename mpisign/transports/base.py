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

from mpisign.stats import stats

Bytes = npt.NDArray[np.uint8]
#: What goes to, or comes from, one rank: its number, and contiguous uint8 memory (n,).
Part = tuple[int, Bytes]

#: Exchanges of that many collectives may be in flight on one transport.
TAGS = 64
_SPIN = 2e-3  # seconds of asking without a pause: longer than small exchanges take
#: Bytes of a notice: see ``Transport.post``.
NOTICE = 512
#: The notice of a rank whose program comes to its end: it will send nothing more.
LEFT = b"left"


class Pending(Protocol):
    """An exchange under way. The memory of its parts belongs to it until it is over."""

    def done(self) -> bool:
        """True once ``wait`` would return at once; never blocks, and moves the exchange on."""

    def wait(self, seconds: float | None = None) -> bool:
        """Blocks until the exchange is over: True. False if it is not after ``seconds``.

        Raises WireError, naming the rank, if a message had another size than its part.
        """

    def missing(self) -> list[int] | None:
        """The ranks whose parts have not come yet; None where the wire cannot tell."""


class Over:
    """An exchange that was over when it returned, or that needed no wire."""

    def done(self) -> bool:
        return True

    def wait(self, seconds: float | None = None) -> bool:
        return True

    def missing(self) -> list[int] | None:
        return []


class Transport(ABC):
    """A wire between ``size`` ranks, of which this process is ``rank``.

    ``ordered``: exchanges match in the order in which they were started, whatever their tags, so
    that collectives must run one after another. ``device``: "cpu" or "cuda", where the memory of
    parts must lie. ``measurable``: False where the time that exchanges take means nothing.
    ``sleeps``: whoever waits for an exchange sleeps until it is over, and does not ask for it.
    ``message``: bytes that travel well together. The default is what Open MPI and MPICH send over
    TCP without asking the receiver first, whose answer waits until its rank calls MPI again.

    Methods that start something are called by all ranks alike; ``post`` and ``notices`` are not.
    """

    name: ClassVar[str]
    ordered: ClassVar[bool] = False
    device: ClassVar[str] = "cpu"
    measurable: ClassVar[bool] = True
    sleeps: bool = False
    message: int = 48 << 10
    rank: int
    size: int

    @abstractmethod
    def _exchange(self, sends: Sequence[Part], recvs: Sequence[Part], tag: int) -> Pending:
        """``start_exchange`` without the books."""

    def start_exchange(self, sends: Sequence[Part], recvs: Sequence[Part], tag: int) -> Pending:
        """Every part of ``sends`` reaches the part of ``recvs`` that its rank holds for this one.

        All ranks call it, some with nothing to send or to receive. Parts between two ranks match in
        order: the first of one rank's ``sends`` to another is the first of the other's ``recvs``
        from it, and so on through the exchanges with one ``tag``, from 0 to ``TAGS`` - 1; tags do
        not mix. A rank sends nothing to itself. Parts of length 0 may be left out or not, alike on
        both sides. Books the bytes with ``mpisign.stats``.
        """
        sent, received = (sum(part.nbytes for _, part in parts) for parts in (sends, recvs))
        stats().add("exchange", calls=0, sent=sent, received=received)
        return self._exchange(sends, recvs, tag)

    def start_allgather(self, send: Bytes, rows: Sequence[Bytes], tag: int) -> Pending:
        """Rank r's ``send`` into everyone's ``rows[r]``, the own row included, of equal lengths.

        ``rows``: one uint8 array a rank, which may have lengths of their own (known to all).
        """
        if rows[self.rank] is not send:
            rows[self.rank][...] = send
        others = self.others
        return self.start_exchange([(r, send) for r in others], [(r, rows[r]) for r in others], tag)

    @abstractmethod
    def start_allreduce(self, values: npt.NDArray[Any], tag: int) -> Pending:
        """Sum over the ranks, in place: float32 or float64, in the wire's own reduction.

        The baseline that votes are measured against: may be over before it returns.
        """

    def post(self, notice: bytes) -> None:  # noqa: B027
        """Tells all other ranks, which need not listen: at most ``NOTICE`` bytes, never blocks.

        For a rank that gives up, so that the others do not wait for it. Best effort.
        """

    def notices(self) -> list[tuple[int, bytes]]:
        """What other ranks posted since the last call, with their ranks; never blocks."""
        return []

    def sleep(self, seconds: float) -> None:
        """Waits; ranks that share this process go on meanwhile."""
        time.sleep(seconds)

    def abort(self) -> None:  # noqa: B027
        """Gives up all exchanges in flight; the transport is of no use afterwards."""

    def free(self) -> None:  # noqa: B027
        """Gives back what the wire holds, once nothing is in flight; called by all ranks."""

    @functools.cached_property
    def others(self) -> list[int]:
        """The other ranks, each rank's list from its right neighbour on, so that none is first."""
        return [(self.rank + i) % self.size for i in range(1, self.size)]


def poll(pending: Pending, seconds: float | None) -> bool:
    """``Pending.wait`` for wires that can only be asked: often at first, then less and less."""
    start = time.perf_counter()
    while not pending.done():
        waited = time.perf_counter() - start
        if seconds is not None and waited >= seconds:
            return False
        # A rank that shares its core must give it away; one that does not loses nothing by it.
        if waited < _SPIN:
            os.sched_yield()
        else:
            time.sleep(min(waited / 16, 1e-3))
    return True


T = TypeVar("T")
#: A collective: yields the exchanges it waits for, and returns its result.
Steps = Generator[Pending, None, T]
