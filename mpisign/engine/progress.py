"""The collectives in flight on one communicator: they progress and fail together."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from mpisign import tracing
from mpisign.engine.failure_detection import FailureDetector, post_failure
from mpisign.engine.handle import Handle
from mpisign.engine.in_flight import IN_FLIGHT, Ownership
from mpisign.errors import BrokenError, CollectiveError, WireError
from mpisign.stats import begin_exchange, count_stage, stage
from mpisign.transports.base import TAGS, Pending, Steps, Transport, poll
from mpisign.transports.tagged import TaggedTransport

_SPIN = 2e-3  # seconds of polling, in which most small calls end
_IDLE = 1.0  # seconds without a collective, after which a rank may be late
_NAP = 2e-4  # seconds of sleep between two polls of a patient rank
_SLICES = (0.05, 0.5)  # seconds between checks of notices: at first, and at most
_STOPPED = 1.0  # seconds that a check may be late, unless the process was stopped


def timeout_of_environment() -> float:
    """``MPISIGN_TIMEOUT`` in seconds, default 600; ValueError if it is no positive number."""
    text = os.environ.get("MPISIGN_TIMEOUT", "600")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ValueError(f"MPISIGN_TIMEOUT must be a positive number of seconds, got {text!r}")
    return seconds


def finish_all() -> None:
    """Blocks until nothing is in flight in this thread."""
    while engines := list(IN_FLIGHT.engines):
        engines[0].finish()
        IN_FLIGHT.engines.discard(engines[0])


class ProgressEngine:
    """The collectives of one communicator. Calls are numbered, alike on every rank.

    Each has a tag of its own and moves whenever any of them is waited for, or one of another
    communicator in this thread, so that ranks may wait in any order; on an ``ordered`` transport
    one starts when all before it are over. Any thread may wait for what another one started. If one
    stops half way, by a timeout, an error that this rank alone sees or a keyboard interrupt, the
    other ranks are notified, all raise, and the communicator can no longer be used. ``stop``:
    called where a collective carried a request. ``pid``: of the process whose rank this is, default
    this one.
    """

    def __init__(
        self,
        transport: Transport,
        timeout: float,
        stop: Callable[[], None] = lambda: None,
        pid: int | None = None,
    ) -> None:
        self.transport = transport
        #: All that exchanges run on, the one for device memory first: they end together.
        self.wires = [transport]
        #: Tags of collectives that carry a request to stop: known to a rank that waits for one.
        #: Before that it depends on what else the rank has waited for.
        self.carried: set[int] = set()
        self._stop = stop
        self.timeout = timeout
        self.broken: BaseException | None = None
        #: Ranks have no core each: see ``waiting``.
        self.shares_cores = True
        #: Then ranks that wait sleep, and leave their cores to those that compute.
        self.patient = False
        self._failures = FailureDetector(transport)
        self._calls = 0
        self._live: list[Handle] = []
        self._unsettled: deque[Handle] = deque()  # that nobody has waited for
        self.owner = Ownership(self, transport, pid)
        self._moved = self._looked = 0.0  # when anything last moved; when notices were looked for

    def submit(
        self,
        function: str,
        steps: Callable[[TaggedTransport], Steps[Any]],
        step: int | None = None,
        vote: int | None = None,
        label: str = "",
        **about: Any,
    ) -> Handle:
        """Starts a collective: ``steps`` makes its generator. ``step`` is for messages.

        ``vote``: its number among the calls whose results are compared, if it is one. ``label``,
        ``about``: for traces, see ``tracing.traced``.
        """
        if self.owner.is_foreign():
            handle = Handle(self, function, self._calls, step)
            self.disown(handle)
            return handle
        if tracing.on:
            steps = tracing.traced(label or function, steps, vote is not None, **about)
        self.owner.take()
        try:
            handle = Handle(self, function, self._calls, step, vote)
            self._calls += 1
            self._begin(handle, steps)
        finally:
            self.owner.leave()
        return handle

    def _begin(self, handle: Handle, steps: Callable[[TaggedTransport], Steps[Any]]) -> None:
        # Calls this far apart share a tag, and whoever ends late would meet the wrong messages.
        while self._live and self._live[0].number <= handle.number - TAGS:
            self.drive(self._live[0])
        if self.broken is not None or self.transport.ended:
            why = self.transport.ended or f"broke off earlier: {self.broken}"
            if self.transport.ended:
                why = f"cannot be used any more: {why}"
            handle.end(BrokenError(f"{handle.function}: this communicator {why}"))
            return
        now = time.monotonic()
        if now - self._moved > min(_IDLE, self.timeout / 2):
            # The others may have given up on this rank, and left enough behind for a small vote.
            self._looked = now
            self._look(handle, 0.0)
            if handle.over:
                return
        settled = 0
        if handle.vote is not None:
            settled = self._settled(handle.vote)
            self._unsettled.append(handle)
        handle.wire = TaggedTransport(self.transport, handle.number % TAGS, settled=settled)
        handle.steps = steps(handle.wire)
        self._live.append(handle)
        self.owner.enlist()
        if not self.transport.ordered or len(self._live) == 1:
            self._move(handle)

    def disown(self, handle: Handle) -> bool:
        """Whether this process is a forked child: then it gives up all, and sends nothing."""
        if not self.owner.is_foreign():
            return False
        self.owner.delist()
        for other in (*self._live, handle):
            if not other.over:
                other.end(self.owner.refusal(other.function))
        self._live.clear()
        return True

    def _settled(self, vote: int) -> int:
        """How many calls, from the first on, this program has waited for.

        That is the program's order of calls, the same on all ranks, not the order in which messages
        arrive. ``vote``: the number of the call that asks.
        """
        unsettled = self._unsettled
        while unsettled and (unsettled[0].waited or len(unsettled) > TAGS):
            unsettled.popleft()
        return vote if not unsettled else unsettled[0].vote or 0

    def settle(self, handle: Handle) -> None:
        """The program has waited for ``handle``; its result belongs to the caller alone."""
        handle.waited = True
        unsettled = self._unsettled
        while unsettled and unsettled[0].waited:
            unsettled.popleft()

    def is_quiet(self) -> bool:
        """Whether nothing is in flight in this thread, and ranks were here a moment ago."""
        return (
            not IN_FLIGHT.engines
            and not self._live
            and self.broken is None
            and not self.transport.ended
            and time.monotonic() - self._moved < min(_IDLE, self.timeout / 2)
            and not self.owner.is_foreign()
        )

    def run(
        self,
        function: str,
        steps: Callable[[TaggedTransport], Steps[Any]],
        step: int,
        vote: int,
    ) -> Any:
        """The result of a collective, of which there is a handle only if it takes long.

        ``is_quiet`` was True. ``step``, ``vote``: as in ``submit``.
        """
        number = self._calls
        self._calls = number + 1
        settled = vote if not self._unsettled else self._settled(vote)
        wire = TaggedTransport(self.transport, number % TAGS, settled=settled)
        if tracing.on:
            steps = tracing.traced(function, steps, True)
        running = steps(wire)
        handle = None
        try:
            while self._spin(pending := next(running)):
                pass
            handle = Handle(self, function, number, step)
        except StopIteration as stop:
            self._moved = time.monotonic()
            if self.carried:
                self.take_request(number % TAGS)
            return stop.value
        except BaseException as error:
            handle = Handle(self, function, number, step)
            self._fail(handle, error)
            self.take_request(number % TAGS)
            raise (error if handle.error is None else handle.error) from None
        handle.steps, handle.pending, handle.wire = running, pending, wire
        self._live.append(handle)
        self.owner.enlist()
        return handle.wait()

    def _spin(self, pending: Pending) -> bool:
        """Whether the exchange ends within ``_SPIN`` seconds of polling."""
        start = begin_exchange()
        until = start + _SPIN
        over, shares = pending.done(), self.shares_cores or self.transport.threaded
        while not over and time.perf_counter() < until:
            if shares:
                os.sched_yield()
            over = pending.done()
        count_stage("exchange", start)
        return over

    def advance(self) -> bool:
        """Moves every collective on that can; False if none could. Never blocks."""
        if not self._live or self.owner.is_foreign() or not self.owner.try_take():
            return False
        try:
            return self._advance()
        finally:
            self.owner.leave()

    def _advance(self) -> bool:
        moved = False
        for handle in list(self._live):
            moved = self._move(handle) or moved
            if self.transport.ordered and not handle.over:
                break
        return moved

    def drive(self, handle: Handle) -> None:
        """Blocks until ``handle`` is over."""
        if self.disown(handle):
            return
        while not self.owner.try_take():
            if handle.over:  # another thread moves what is in flight here, and has moved this
                return
            self.transport.sleep(1e-3)
        try:
            if not handle.over:
                self.owner.enlist()
                self._drive(handle)
        finally:
            self.owner.leave()

    def _drive(self, handle: Handle) -> None:
        began = time.monotonic()
        self._looked, pause = began, _SLICES[not self.transport.measurable]
        try:
            while not handle.over:
                others: list[ProgressEngine] = []
                if len(IN_FLIGHT.engines) > 1:
                    others = [engine for engine in list(IN_FLIGHT.engines) if engine is not self]
                moved = [engine.advance() for engine in others] if others else []
                if (self._move(handle) if self._live == [handle] else self._advance()) or any(
                    moved
                ):
                    continue
                since = max(began, self._moved)
                if not self._sleep(handle, pause, alone=not others):
                    now = time.monotonic()
                    if now - self._looked >= pause:
                        late = now - self._looked - pause
                        if late > _STOPPED:  # it did not wait meanwhile, and the others did
                            began = since = since + late
                        self._look(handle, now - since)
                        left = max(self.timeout - (now - since), _SLICES[0])
                        self._looked, pause = now, min(2 * pause, _SLICES[1], left)
        except BaseException as error:
            if not handle.over:
                self._interrupt(handle, error)
            raise

    def glance(self, handle: Handle) -> None:
        """Checks notices now and then, for a rank that polls instead of waiting."""
        now = time.monotonic()
        if handle.asked is None:
            handle.asked = now
        if now - self._looked >= _SLICES[1] and self.owner.try_take():
            try:
                self._looked = now
                if not handle.over:
                    self._look(handle, now - max(handle.asked, self._moved))
            finally:
                self.owner.leave()

    def take_request(self, tag: int) -> None:
        """The collective of ``tag`` was waited for: what it carried is known from now on."""
        if tag in self.carried:
            self.carried.remove(tag)
            self._stop()

    def is_first(self, tag: int) -> bool:
        """Whether no earlier collective than that of ``tag`` is in flight."""
        return not self._live or self._live[0].number % TAGS == tag

    def turn(self, tag: int) -> Pending:
        """Over once all earlier collectives than that of ``tag`` are."""
        return _Turn(self._live, tag)

    def give_up(self, handle: Handle, error: CollectiveError) -> None:
        """Ends everything in flight and posts the error to the other ranks."""
        self._break(handle, error, str(error))

    def finish(self) -> None:
        """Blocks until nothing is in flight."""
        while self._live:
            self.drive(self._live[0])

    def _sleep(self, handle: Handle, seconds: float, alone: bool) -> bool:
        """Waits a little, at most ``seconds``; True if the exchange that was waited for is over."""
        head = self._live[0] if self.transport.ordered else handle
        assert head.pending is not None
        if (len(self._live) > 1 and not self.transport.ordered) or not alone:
            # Which one moves next is not known: look at all of them, often at first.
            idle = time.monotonic() - self._moved
            seconds = min(max(50e-6, idle / 16), 1e-3)
        patient = self.patient and self.shares_cores
        if patient and self.transport.measurable and not self.transport.sleeps:
            with stage("exchange"):
                self.transport.sleep(min(seconds, _NAP))
            seconds = 0.0
        try:
            return head.pending.wait(seconds)
        except Exception as error:
            self._fail(head, error)
            return True

    def _move(self, handle: Handle) -> bool:
        """One handle as far as it goes without waiting; True if it moved or is over."""
        moved = False
        while handle.steps is not None:
            try:
                if handle.pending is not None:
                    if not handle.pending.done():
                        break
                    handle.pending = None
                moved, self._moved = True, time.monotonic()
                handle.pending = next(handle.steps)
            except StopIteration as stop:
                self._end(handle, None, stop.value)
            except BaseException as error:
                self._fail(handle, error)
                if not isinstance(error, Exception):
                    raise
        return moved or handle.over

    def _fail(self, handle: Handle, error: BaseException) -> None:
        lost = None
        if isinstance(error, Exception) and self.transport.lost(error):
            lost = self._failures.lost(handle, time.monotonic() - self._moved)
        if lost is not None:
            lost.__cause__ = error
            self._break(handle, lost, "")
        elif isinstance(error, WireError):
            error = WireError(f"{handle.function}: {error}")
            self._break(handle, error, str(error))
        elif isinstance(error, CollectiveError):  # the same on every rank, before any data moved
            self._end(handle, error)
        elif isinstance(error, Exception):
            self._break(handle, error, f"{handle.function}: {type(error).__name__}: {error}")
        else:  # whoever catches it must not meet half a collective
            self._interrupt(handle, error)

    def _end(self, handle: Handle, error: BaseException | None, result: Any = None) -> None:
        handle.end(error, result)
        if handle in self._live:
            self._live.remove(handle)
        if not self._live:
            self.owner.delist()

    def _look(self, handle: Handle, waited: float) -> None:
        """What the others have posted; gives up if one of them did, or after the timeout."""
        notice = ""
        error: CollectiveError | None
        try:
            error = self._failures.check(handle, waited)
            if error is None and waited >= self.timeout:
                error = self._failures.give_up(handle, waited)
        except WireError as wrong:  # a notice that is none
            notice = f"{handle.function}: {wrong}"
            error = WireError(notice)
        if error is not None:
            self._break(handle, error, notice)

    def _interrupt(self, handle: Handle, error: BaseException) -> None:
        """A key, an exit, or whatever else a collective cannot go on after."""
        if self.broken is None:
            what = "interrupted" if isinstance(error, KeyboardInterrupt) else repr(error)
            text = f"{handle.function}: {what}"
            self._break(handle, CollectiveError(text), text)

    def _break(self, handle: Handle, error: BaseException, notice: str) -> None:
        """Ends all that is in flight, and tells the others why unless they know."""
        self.broken = error
        if notice:
            post_failure(self.transport, handle, notice)
        for other in self._live:
            if other is not handle:
                text = f"{other.function}: broke off with an earlier collective: {error}"
                other.end(BrokenError(text))
        self._live.clear()
        self.owner.delist()
        handle.end(error)
        for wire in self.wires:  # a kernel of NCCL would wait for a lost rank for ever
            wire.abort()


class _Turn:
    """A place in the queue that is waited for."""

    def __init__(self, live: list[Handle], tag: int) -> None:
        self._live, self._tag = live, tag

    def done(self) -> bool:
        return self._live[0].number % TAGS == self._tag

    def wait(self, seconds: float | None = None) -> bool:
        return poll(self, seconds)

    def missing(self) -> None:
        return None
