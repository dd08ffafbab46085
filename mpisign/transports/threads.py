"""Ranks that are threads of one process: for simulations and tests of any number of ranks."""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from mpisign.errors import WireError
from mpisign.stats import stats
from mpisign.transports.base import LEFT, Bytes, Over, Part, Pending, Transport

_Key = tuple[int, int]  # the rank that sent it, its tag


class _Rank:
    """What has reached one rank: messages that nobody waits for yet, and parts that wait."""

    def __init__(self) -> None:
        self.came = threading.Condition()
        self.early: dict[_Key, deque[Bytes]] = defaultdict(deque)
        self.awaited: dict[_Key, deque[tuple[_Exchange, Bytes]]] = defaultdict(deque)
        self.notices: deque[tuple[int, bytes]] = deque()

    def deliver(self, key: _Key, message: Bytes) -> None:
        """Hands a message to the oldest part that waits for it."""
        with self.came:
            if not self.awaited[key]:
                self.early[key].append(message.copy())
                return
            exchange, part = self.awaited[key].popleft()
            exchange.take(key[0], part, message)
            if not exchange.left:
                self.came.notify_all()


class _Turn:
    """Who of the threads that ``run`` started computes: one at a time.

    A thousand threads that all want the interpreter's lock spend their time asking for it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._mine = threading.local()

    def take(self) -> None:
        """From now on this thread's."""
        self._lock.acquire()
        self._mine.held = True

    def leave(self) -> bool:
        """Somebody else's; whether it was this thread's."""
        held = getattr(self._mine, "held", False)
        if held:
            self._mine.held = False
            self._lock.release()
        return held

    def offer(self) -> None:
        """Lets others compute who wait for it: for a thread that asks again and again."""
        with self.left():
            time.sleep(1e-5)

    @contextmanager
    def left(self) -> Iterator[None]:
        """While this thread waits."""
        held = self.leave()
        try:
            yield
        finally:
            if held:
                self.take()


_TURN = _Turn()  # of all worlds: a thread may be a rank of several


class World:
    """``size`` ranks; ``ThreadTransport(world, rank)`` is each one's end."""

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"World: size must be at least 1, got {size}")
        self.size = size
        self.ranks = [_Rank() for _ in range(size)]
        self.lock = threading.Lock()
        self.gathered: dict[tuple[int, int], _Gathering] = {}


class _Gathering:
    """One allgather: what each rank gave, until all have taken it."""

    def __init__(self, size: int) -> None:
        self.given: list[Bytes | None] = [None] * size
        self.left = size
        self.takers = size
        self.whole = threading.Event()
        self.joined: Bytes | None = None

    def absent(self) -> list[int]:
        return [r for r, given in enumerate(self.given) if given is None]


class _Gather:
    def __init__(self, world: World, key: tuple[int, int], rows: Any, of: _Gathering) -> None:
        self._world, self._key, self._rows, self._of = world, key, rows, of
        self._over = False

    def done(self) -> bool:
        if not self._over:
            if self._of.whole.is_set():
                self._take()
            else:
                _TURN.offer()
        return self._over

    def wait(self, seconds: float | None = None) -> bool:
        with _TURN.left():
            over = self._of.whole.wait(seconds)
        return over and self.done()

    def missing(self) -> list[int]:
        return self._of.absent()

    def _take(self) -> None:
        of = self._of
        for rank, given in enumerate(of.given):
            assert given is not None
            if len(given) != len(self._rows[rank]):
                raise WireError(
                    f"rank {rank} sent {len(given)} bytes where {len(self._rows[rank])} were due"
                )
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
    """Parts of one rank and how many are still ``left`` to come."""

    def __init__(self, rank: _Rank, recvs: Sequence[Part], tag: int) -> None:
        self._rank = rank
        self._sources = [source for source, _ in recvs]
        self._tag = tag
        self._error: WireError | None = None
        self.left = len(recvs)
        with rank.came:
            for source, part in recvs:
                key = (source, tag)
                if rank.early[key]:
                    self.take(source, part, rank.early[key].popleft())
                else:
                    rank.awaited[key].append((self, part))

    def take(self, source: int, part: Bytes, message: Bytes) -> None:
        """A message for ``part``; under the rank's lock."""
        if len(message) == len(part):
            part[...] = message
        else:
            text = f"rank {source} sent {len(message)} bytes where {len(part)} were due"
            self._error = self._error or WireError(text)
        self.left -= 1  # last: ``done`` asks without the lock, and copies give up the interpreter's

    def done(self) -> bool:
        if not self._all_here():
            _TURN.offer()
        return self._all_here()

    def _all_here(self) -> bool:
        if self._error is not None:
            raise self._error
        return self.left == 0

    def wait(self, seconds: float | None = None) -> bool:
        until = None if seconds is None else time.monotonic() + seconds
        with _TURN.left(), self._rank.came:
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
                s for s in set(self._sources) if any(e is self for e, _ in awaited[s, self._tag])
            ]


class ThreadTransport(Transport):
    """One thread's end of a ``World``. What is sent is copied at once; sizes are checked."""

    name = "threads"
    measurable = False

    def __init__(self, world: World, rank: int) -> None:
        self._world = world
        self.rank = rank
        self.size = world.size
        self._gathers: dict[int, int] = defaultdict(int)

    def _exchange(self, sends: Sequence[Part], recvs: Sequence[Part], tag: int) -> Pending:
        for dest, part in sends:
            self._world.ranks[dest].deliver((self.rank, tag), part)
        return _Exchange(self._world.ranks[self.rank], recvs, tag)

    def start_allgather(self, send: Bytes, rows: Any, tag: int) -> Pending:
        # As one object for all ranks: p messages a rank each way would be slow at 1,000 ranks.
        total = sum(len(row) for row in rows) - len(rows[self.rank])
        stats().add("exchange", calls=0, sent=len(send) * (self.size - 1), received=total)
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

    def start_allreduce(self, values: np.ndarray[Any, Any], tag: int) -> Over:
        rows = np.empty((self.size, *values.shape), dtype=values.dtype)
        flat = rows.reshape(self.size, -1).view(np.uint8)
        self.start_allgather(values.reshape(-1).view(np.uint8), flat, tag).wait()
        values[...] = rows.sum(axis=0)
        return Over()

    def post(self, notice: bytes) -> None:
        for rank in self.others:
            self._world.ranks[rank].notices.append((self.rank, notice))

    def sleep(self, seconds: float) -> None:
        with _TURN.left():
            time.sleep(seconds)

    def notices(self) -> list[tuple[int, bytes]]:
        own, came = self._world.ranks[self.rank].notices, []
        while own:
            came.append(own.popleft())
        return came


def run(size: int, function: Callable[..., Any], *args: Any, **options: Any) -> list[Any]:
    """``function(communicator, *args)`` on ``size`` ranks that are threads of this process.

    ``options``: of ``mpisign.Communicator``. Returns what each rank returned, by rank. The first
    rank's exception is raised, once all have ended. For simulations: the ranks share the
    interpreter's lock and ``mpisign.stats``.
    """
    from mpisign.communicator import Communicator

    world = World(size)
    results: list[Any] = [None] * size
    errors: list[BaseException | None] = [None] * size

    def work(rank: int) -> None:
        transport = ThreadTransport(world, rank)
        _TURN.take()
        try:
            results[rank] = function(Communicator(transport, **options), *args)
        except BaseException as error:
            errors[rank] = error
            transport.post(LEFT)
        finally:
            _TURN.leave()

    threads = [threading.Thread(target=work, args=(r,), daemon=True) for r in range(size)]
    with _TURN.left():  # a rank may run a world of its own
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for error in errors:
        if error is not None:
            raise error
    return results
