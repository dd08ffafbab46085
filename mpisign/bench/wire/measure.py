"""The clock: all ways of one size in turns, so that a machine's mood hits all alike."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from mpisign.bench.errors import BenchError
from mpisign.bench.results import Timing
from mpisign.bench.wire import nodes as nodes_
from mpisign.bench.wire.gradient import Gradient
from mpisign.bench.wire.links import Link
from mpisign.bench.wire.nodes import Nodes
from mpisign.bench.wire.results import Row
from mpisign.bench.wire.via import Via, said
from mpisign.bench.wire.watchdog import Watchdog
from mpisign.bench.wire.way import Running, Way
from mpisign.stats import stats

_TURN = 5e-3  # seconds that a turn takes at least: short calls follow on each other
_CALLS = 32
_FP32 = 4


@dataclass
class Contestant:
    """A way over one wire at one size. ``error``: why it rests."""

    via: Via
    way: Way
    running: Running | None = None
    error: str = ""
    calls: int = 1
    spent: float = 0.0
    samples: list[float] = field(default_factory=list)
    #: sent, received (mpisign.stats, mean over ranks), sent, received (counted per node): a call.
    bytes: list[tuple[float, float, float, float]] = field(default_factory=list)

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.way.label} over {self.via.name}"


class Clock:
    """Turns of all ranks: barrier, calls, barrier; the slowest rank's time is the turn's."""

    def __init__(self, control: Via, nodes: Nodes, watchdog: Watchdog, time_limit: float) -> None:
        self.control, self.nodes, self.watchdog = control, nodes, watchdog
        self.time_limit = time_limit
        self._own = (0.0, 0.0)

    def weigh(self) -> None:
        """Counts what an empty turn sends, which later turns leave out."""
        empty = [self.timed(lambda: None, 1)[1][2:] for _ in range(5)]
        self._own = tuple(np.median(empty, axis=0))  # type: ignore[assignment]

    def rehearse(self, contestant: Contestant, gradient: Gradient) -> None:
        """Starts it, checks what it gives, and finds how many calls make a turn."""
        with self.watchdog.over(
            f"{contestant.label} ({gradient.length:,} coordinates, first call)"
        ):
            try:
                running = self.control.agreed(lambda: contestant.way.start(gradient))
                contestant.running = running
                running.prepare()
                seconds, moved = self.timed(running.call, 1)
                self.control.agreed(running.check)
                self._check_replicas(running)
                if seconds < self.time_limit:
                    running.prepare()
                    seconds, moved = self.timed(running.call, 1)
                    contestant.calls = int(min(_CALLS, max(1, _TURN // max(seconds, 1e-9))))
                else:
                    self._book(contestant, seconds, moved)  # one is all it gets
            except BenchError as error:
                contestant.error = str(error)

    def turn(self, contestant: Contestant, size: int) -> None:
        """One sample, unless it failed or has had its time."""
        running = contestant.running
        if contestant.error or running is None or contestant.spent >= self.time_limit:
            return
        with self.watchdog.over(f"{contestant.label} ({size:,} coordinates)"):
            start = time.perf_counter()
            try:
                running.prepare()
                self._book(contestant, *self.timed(running.call, contestant.calls))
            except BenchError as error:
                contestant.error = str(error)
            # Not each rank's own clock: all must agree on who rests.
            spent = self.control.gather(np.array([time.perf_counter() - start]))
            contestant.spent += float(spent.max())

    def _book(
        self, contestant: Contestant, seconds: float, moved: tuple[float, float, float, float]
    ) -> None:
        n = contestant.calls
        contestant.samples.append(seconds / n)
        own = (0.0, 0.0, *self._own)
        sent, received, out, into = (max(0.0, a - b) / n for a, b in zip(moved, own, strict=True))
        contestant.bytes.append((sent, received, out, into))
        if seconds >= self.time_limit:
            contestant.spent = self.time_limit

    def timed(
        self, call: Callable[[], object], calls: int
    ) -> tuple[float, tuple[float, float, float, float]]:
        """The slowest rank's seconds and the bytes of the turn; BenchError if a rank failed."""
        text = ""
        exchange = stats().stages["exchange"]
        # Before the barrier: behind it another rank may be faster, and its bytes here already.
        before = (exchange.sent, exchange.received, *self._counted())
        self.control.barrier()
        start = time.perf_counter()
        try:
            for _ in range(calls):
                call()
        except Exception as error:
            text = said(error)
        seconds = time.perf_counter() - start
        self.control.barrier()
        after = (exchange.sent, exchange.received, *self._counted())
        moved = [b - a for a, b in zip(before, after, strict=True)]
        rows = self.control.gather(np.array([seconds, *moved, bool(text)], dtype=np.float64))
        if rows[:, 5].any():
            told = self.control.tell(text)
            rank = int(np.flatnonzero(rows[:, 5])[0])
            raise BenchError(told[rank])
        sent, received = rows[:, 1].mean(), rows[:, 2].mean()
        out, into = (nodes_.per_node(self.nodes, rows[:, i]) for i in (3, 4))
        return float(rows[:, 0].max()), (float(sent), float(received), out, into)

    def _counted(self) -> tuple[int, int]:
        return nodes_.counted(self.nodes.interface) if self.nodes.interface else (0, 0)

    def _check_replicas(self, running: Running) -> None:
        """BenchError unless all ranks have the same result, bit for bit."""
        if running.result is None:
            return
        result = np.ascontiguousarray(running.result())
        digest = hashlib.blake2b(result.view(np.uint8).data, digest_size=32).digest()
        rows = self.control.gather(np.frombuffer(digest, dtype=np.uint8))
        if (rows != rows[0]).any():
            odd = [str(r) for r in range(len(rows)) if (rows[r] != rows[0]).any()]
            raise BenchError(f"wrong: rank 0 and {', '.join(odd)} have different results")


def row(contestant: Contestant, gradient: Gradient, nodes: Nodes, link: Link) -> Row:
    """What came of it."""
    way = contestant.way
    known = Row(
        gradient.length,
        len(gradient.lengths),
        contestant.via.name,
        way.label,
        way.kind,
        way.algorithm,
        notes=way.notes,
    )
    if contestant.error or not contestant.samples:
        return replace(known, error=contestant.error or "not measured")
    timing = Timing.of(contestant.samples)
    ends, each = nodes.ends
    must = way.traffic(gradient.length, gradient.size, ends, each)
    sent, received, out, into = (float(v) for v in np.median(contestant.bytes, axis=0))
    if not way.booked:
        sent = received = must.rank
    limit: float | None = must.link / (nodes.rate or link.bandwidth)
    if limit and limit < link.latency:  # bytes are not what takes the time
        limit = None
    return replace(
        known,
        time=timing,
        calls_per_run=contestant.calls,
        algbw=_FP32 * gradient.length / timing.median,
        busbw=received / timing.median,
        sent=sent,
        received=received,
        bytes_by="stats" if way.booked else "formula",
        counted_sent=out if nodes.interface else None,
        counted_received=into if nodes.interface else None,
        limit=limit,
        ratio=timing.median / limit if limit else None,
    )
