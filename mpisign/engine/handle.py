"""A collective in flight, as its caller holds it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from mpisign.errors import CollectiveError
from mpisign.transports.base import TAGS, Pending, Steps
from mpisign.transports.tagged import TaggedTransport

if TYPE_CHECKING:
    from mpisign.engine.progress import ProgressEngine


class Handle:
    """A non-blocking collective. ``wait`` must be called on every rank, once or more."""

    def __init__(
        self,
        engine: ProgressEngine,
        function: str,
        number: int,
        step: int | None,
        vote: int | None = None,
    ) -> None:
        self.function = function
        self.number = number
        self.vote = vote  # its number among those whose results are compared
        self.waited = False  # or about to be
        self.step = number if step is None else step
        self.steps: Steps[Any] | None = None
        self.pending: Pending | None = None
        self.wire: TaggedTransport | None = None
        self.asked: float | None = None  # when ``done`` first was
        self.over = False
        self._engine = engine
        self._result: Any = None
        self.error: BaseException | None = None  # once it is over

    @property
    def started(self) -> bool:
        """Whether all ranks are known to have started it: their first messages have come."""
        wire, pending = self.wire, self.pending
        if wire is None or pending is None:
            return False
        return wire.first_done and not getattr(pending, "first", False)

    def done(self) -> bool:
        """Whether the collective has completed or failed; advances it.

        Never blocks, except for 2 seconds after a failure, in which ranks exchange notices.
        """
        if not self.over and self._engine.disown(self):
            return True
        while not self.over and self._engine.advance():
            pass
        if not self.over:
            self._engine.glance(self)
        return self.over

    def wait(self) -> Any:
        """Blocks until the collective completes; returns its result or raises its error.

        All live ranks raise CollectiveTimeout, which names the missing ranks, after the
        communicator's timeout.
        """
        if not self.over:
            self._engine.drive(self)
        self._engine.settle(self)
        if self._engine.carried:
            self._engine.take_request(self.number % TAGS)
        if self.error is not None:
            raise self.error
        return self._result

    def settle(self, seconds: float | None = None) -> None:
        """Blocks until the result or an error is there, and raises neither.

        After ``seconds`` it is given up, and with it the communicator.
        """
        end = None if seconds is None else time.monotonic() + seconds
        while end is not None and not self.done():
            if time.monotonic() > end:
                text = f"{self.function}: other ranks do not take part"
                self._engine.give_up(self, CollectiveError(text))
            self._engine.transport.sleep(1e-3)
        if not self.over:
            self._engine.drive(self)
        self._engine.settle(self)

    def end(self, error: BaseException | None, result: Any = None) -> None:
        """Over, with a result or an error."""
        self.over, self.error, self._result = True, error, result
        self.steps = self.pending = None
