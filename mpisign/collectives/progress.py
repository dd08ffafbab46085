"""Votes under way on one communicator: started in the order of the calls, driven one by one.

A vote is several exchanges in a row, and non-blocking MPI collectives match by the order in which
they were started. Two votes that advanced independently would start their second exchanges in an
order that differs from rank to rank; so a vote's exchanges start when all earlier votes are over.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from mpisign.transports.base import Pending


class Handle:
    """A non-blocking collective. ``wait`` must be called on every rank, once or more."""

    def __init__(self, queue: Queue, steps: Any) -> None:
        self._queue = queue
        self._steps = steps
        self._pending: Pending | None = None
        self._over = False
        self._result: Any = None
        self._error: BaseException | None = None

    def done(self) -> bool:
        """True once the result is there; never blocks, and moves the vote on."""
        while not self._over and self._queue.advance(block=False):
            pass
        return self._over

    def wait(self) -> Any:
        """Blocks until the result is there and returns it; raises what the collective raised."""
        while not self._over:
            self._queue.advance(block=True)
        if self._error is not None:
            raise self._error
        return self._result

    def _advance(self, block: bool) -> bool:
        """One exchange further; False if it is still under way and must not be waited for."""
        try:
            if self._pending is None:
                self._pending = next(self._steps)
            if not block and not self._pending.done():
                return False
            self._pending = self._steps.send(self._pending.wait())
        except StopIteration as stop:
            self._result, self._over = stop.value, True
        except BaseException as error:
            self._error, self._over = error, True
            if not isinstance(error, Exception):
                raise
        return True


class Queue:
    """The handles of one communicator, oldest first."""

    def __init__(self) -> None:
        self._handles: deque[Handle] = deque()

    def submit(self, steps: Any) -> Handle:
        """Queues a collective; its first exchange starts at once if nothing is before it."""
        handle = Handle(self, steps)
        self._handles.append(handle)
        self.advance(block=False)
        return handle

    def advance(self, block: bool) -> bool:
        """Moves the oldest handle on; False if nothing moved."""
        if not self._handles:
            return False
        head = self._handles[0]
        moved = head._advance(block)
        if head._over:
            self._handles.popleft()
        return moved
