"""Which thread moves a communicator's collectives, and whether its process may."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from mpisign import forks
from mpisign.errors import BrokenError
from mpisign.transports.base import Transport

if TYPE_CHECKING:
    from mpisign.engine.progress import ProgressEngine


class _InFlight(threading.local):
    """The progress engines that this thread moves: they have something in flight."""

    def __init__(self) -> None:
        self.engines: set[ProgressEngine] = set()


IN_FLIGHT = _InFlight()


class Ownership:
    """Of one progress engine: it belongs to the thread that last started or awaited anything of it.

    One thread moves it at a time. The others of the process wait for their turn, asleep.
    """

    def __init__(self, engine: ProgressEngine, transport: Transport, pid: int | None) -> None:
        self._engine, self._transport = engine, transport
        self._lock = threading.RLock()
        self._listed: set[ProgressEngine] | None = None  # the set of its thread that it is in
        # With one rank nothing is sent, in whoever's name.
        self._pid = (os.getpid() if pid is None else pid) if transport.size > 1 else 0

    @property
    def pid(self) -> int | None:
        """The process whose rank this is."""
        return self._pid or None

    def take(self) -> None:
        """Takes the turn, once no other thread has it."""
        while not self._lock.acquire(blocking=False):
            self._transport.sleep(1e-3)

    def try_take(self) -> bool:
        """Takes the turn if no other thread has it."""
        return self._lock.acquire(blocking=False)

    def leave(self) -> None:
        """Gives the turn back."""
        self._lock.release()

    def enlist(self) -> None:
        """Something is in flight, which this thread moves from now on."""
        mine = IN_FLIGHT.engines
        if self._listed is not mine:
            self.delist()
            self._listed = mine
        mine.add(self._engine)

    def delist(self) -> None:
        """Nothing is in flight any more."""
        if self._listed is not None:
            self._listed.discard(self._engine)
            self._listed = None

    def is_foreign(self) -> bool:
        """Whether this process is a forked child of the one whose rank it is."""
        return self._pid != 0 and os.getpid() != self._pid

    def refusal(self, function: str) -> BrokenError:
        """The error of a forked child."""
        return BrokenError(f"{function}: {forks.explanation(self._pid)}")
