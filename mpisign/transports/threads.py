"""Ranks that are threads of one process: for simulations and tests of any number of ranks."""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from mpisign.errors import WireError
from mpisign.stats import count_bytes
from mpisign.transports.base import Bytes, Completed, Part, Pending, Transport

_Key = tuple[int, int]  # the rank that sent it, its tag


class _Rank:
    """The inbox of one rank: messages without a part yet, and parts without a message yet."""

    def __init__(self) -> None:
        self.came = threading.Condition()
        self.early: dict[_Key, deque[Bytes]] = defaultdict(deque)
        self.awaited: dict[_Key, deque[tuple[_Exchange, Bytes]]] = defaultdict(deque)
        self.notices: deque[tuple[int, bytes]] = deque()

    def deliver(self, key: _Key, message: Bytes) -> None:
        """Hands a message to the oldest part that waits for it."""
        with self.came:
            awaited = self.awaited.get(key)
            if awaited is None:
                self.early[key].append(message.copy())
                return
            exchange, part = awaited.popleft()
            if not awaited:  # a thousand ranks have a million keys a tag
                del self.awaited[key]
            exchange.take(key[0], part, message)
            if not exchange.left:
                self.came.notify_all()


class _Turn:
    """A lock with which the threads that ``run`` started compute one at a time.

    A thousand threads that contend for the interpreter's lock do little else.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._mine = threading.local()

    def take(self) -> None:
        """Takes the turn for this thread."""
        self._lock.acquire()
        self._mine.held = True

    def leave(self) -> bool:
        """Releases the turn; returns whether this thread had it."""
        if not getattr(self._mine, "held", False):
            return False
        self._mine.held = False
        self._lock.release()
        return True

    def offer(self) -> None:
        """Lets other threads compute for a moment: for a thread that polls."""
        with self.left():
            time.sleep(1e-5)

    @contextmanager
    def left(self) -> Iterator[None]:
        """Releases the turn while this thread waits."""
        held = self.leave()
        try:
            yield
        finally:
            if held:
                self.take()


TURN = _Turn()  # one for all worlds: a thread may be a rank of several


class World:
    """``size`` ranks; ``ThreadTransport(world, rank)`` is the end of one of them."""

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"World: size must be at least 1, got {size}")
        self.size = size
        self.ranks = [_Rank() for _ in range(size)]
        self.lock = threading.Lock()
        self.gathered: dict[tuple[int, int], _Gathering] = {}


class _Gathering:
    """One allgather: the row of each rank, until all ranks have copied all rows."""

    def __init__(self, size: int) -> None:
        self.given: list[Bytes | None] = [None] * size
        self.left = self.takers = size
        self.whole = threading.Event()
        self.joined: Bytes | None = None


class _Gather:
    """One rank's part in a ``_Gathering``."""

    def __init__(self, world: World, key: tuple[int, int], rows: Any, of: _Gathering) -> None:
        self._world, self._key, self._rows, self._of = world, key, rows, of
        self._over = False

    def done(self) -> bool:
        if not self._over and self._of.whole.is_set():
            self._take()
        elif not self._over:
            TURN.offer()
        return self._over

    def wait(self, seconds: float | None = None) -> bool:
        with TURN.left():
            over = self._of.whole.wait(seconds)
        return over and self.done()

    def missing(self) -> list[int]:
        return [r for r, given in enumerate(self._of.given) if given is None]

    def _take(self) -> None:
        of = self._of
        for rank, given in enumerate(of.given):
            assert given is not None
            if len(given) != len(self._rows[rank]):
                due = len(self._rows[rank])
                raise WireError(f"rank {rank} sent {len(given)} bytes where {due} were due")
        self._over = True
        if isinstance(self._rows, np.ndarray):
            assert of.joined is not None
            self._rows[...] = of.joined.reshape(self._rows.shape)
        else:
            for row, given in zip(self._rows, of.given, strict=True):
                row[...] = given
        with self._world.lock:
            of.takers -= 1
            if of.takers == 0:
                del self._world.gathered[self._key]


class _Exchange:
    """The parts that one rank receives; ``left`` of them have not arrived."""

    def __init__(self, rank: _Rank, recvs: Sequence[Part], tag: int) -> None:
        self._rank, self._tag = rank, tag
        self._sources = [source for source, _ in recvs]
        self._error: WireError | None = None
        self.left = len(recvs)
        with rank.came:
            for source, part in recvs:
                key = (source, tag)
                early = rank.early.get(key)
                if early is not None:
                    self.take(source, part, early.popleft())
                    if not early:
                        del rank.early[key]
                else:
                    rank.awaited[key].append((self, part))

    def take(self, source: int, part: Bytes, message: Bytes) -> None:
        """A message for ``part``; under the rank's lock."""
        if len(message) == len(part):
            part[...] = message
        elif self._error is None:
            text = f"rank {source} sent {len(message)} bytes where {len(part)} were due"
            self._error = WireError(text)
        # Last: ``done`` reads it without the lock, and copies release the interpreter's.
        self.left -= 1

    def done(self) -> bool:
        if not self._all_here():
            TURN.offer()
        return self._all_here()

    def _all_here(self) -> bool:
        if self._error is not None:
            raise self._error
        return self.left == 0

    def wait(self, seconds: float | None = None) -> bool:
        until = None if seconds is None else time.monotonic() + seconds
        with TURN.left(), self._rank.came:
            while not self._all_here():
                left = None if until is None else until - time.monotonic()
                if left is not None and left <= 0:
                    return False
                self._rank.came.wait(left)
        return True

    def missing(self) -> list[int]:
        with self._rank.came:
            awaited = self._rank.awaited
            return [
                s
                for s in set(self._sources)
                if any(e is self for e, _ in awaited.get((s, self._tag), ()))
            ]


class ThreadTransport(Transport):
    """One rank's end of a ``World``. Copies what is sent at once; checks sizes."""

    name = "threads"
    measurable = False

    def __init__(self, world: World, rank: int) -> None:
        self._world, self.rank, self.size = world, rank, world.size
        self._gathers: dict[int, int] = defaultdict(int)

    def _exchange(self, sends: Sequence[Part], recvs: Sequence[Part], tag: int) -> Pending:
        for dest, part in sends:
            self._world.ranks[dest].deliver((self.rank, tag), part)
        return _Exchange(self._world.ranks[self.rank], recvs, tag)

    def start_allgather(self, send: Bytes, rows: Any, tag: int) -> Pending:
        # One object for all ranks: p messages a rank would be slow at 1,000 ranks.
        total = sum(len(row) for row in rows) - len(rows[self.rank])
        count_bytes(len(send) * (self.size - 1), total)
        key = (tag, self._gathers[tag])
        self._gathers[tag] += 1
        with self._world.lock:
            of = self._world.gathered.setdefault(key, _Gathering(self.size))
            of.given[self.rank] = send.copy()
            of.left -= 1
            if of.left == 0:
                of.joined = np.concatenate(of.given)  # type: ignore[arg-type]
                of.whole.set()
        return _Gather(self._world, key, rows, of)

    def start_allreduce(self, values: np.ndarray[Any, Any], tag: int) -> Completed:
        rows = np.empty((self.size, *values.shape), dtype=values.dtype)
        flat = rows.reshape(self.size, -1).view(np.uint8)
        self.start_allgather(values.reshape(-1).view(np.uint8), flat, tag).wait()
        values[...] = rows.sum(axis=0)
        return Completed()

    def post(self, notice: bytes) -> None:
        for rank in self.others:
            self._world.ranks[rank].notices.append((self.rank, notice))

    def sleep(self, seconds: float) -> None:
        with TURN.left():
            time.sleep(seconds)

    def notices(self) -> list[tuple[int, bytes]]:
        own = self._world.ranks[self.rank].notices
        return [own.popleft() for _ in range(len(own))]
