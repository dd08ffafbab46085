"""The clock: a kernel, its limit and the plain ways in turns, so that all see the same machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from mpisign.bench.case import Call, Case
from mpisign.bench.results import Plain, Row, SmallCall, Timing

_PLAIN_BUDGET = 0.3  # seconds for each plain way, after which it rests
_MANY = 1000
_OWN_CORE = 0.95  # of a sample's time, spent on the core
_SCALES_FROM = 1 << 17  # coordinates: below, kernels keep to one thread
_SCALING, _REACHABLE = 1.6, 0.9  # goal of two threads over one; share of the limit it supposes


class _Ring:
    """Whose turn it is among sets of arguments.

    All that use the same sets share one: what one contender has just read would be in the caches
    for the next.
    """

    def __init__(self, sets: int) -> None:
        self._sets, self._at = sets, 0

    def take(self, count: int) -> list[int]:
        """The next ``count`` sets."""
        first, self._at = self._at, (self._at + count) % self._sets
        return [i % self._sets for i in range(first, first + count)]


class _Contender:
    """What takes its turn in every round: one call for each set of arguments."""

    def __init__(
        self,
        calls: Sequence[Call],
        clock: Callable[[Sequence[Call]], float],
        ring: _Ring | None = None,
        threads: int = 1,
        budget: float = float("inf"),
    ) -> None:
        self._clock = clock
        self._calls = calls
        self.ring = ring or _Ring(len(calls))
        self._budget = budget
        self._repeat = 0
        self.threads = threads
        self.samples: list[float] = []

    def turn(self, device: Any) -> None:
        """One sample; the first is a rehearsal that tells how often a call must be repeated."""
        if self._budget <= 0:
            return
        start = time.perf_counter()
        with device.threads(self.threads):
            if not self._repeat:
                self._clock(self._next(1))
                once = self._clock(self._next(1))
                self._repeat = min(_MANY, max(1, round(device.sample / max(once, 1e-9))))
                if once > self._budget:  # one is all it gets
                    self.samples.append(once)
                    self._budget = 0.0
                return
            self.samples.append(self._undisturbed(device.tries) / self._repeat)
        self._budget -= time.perf_counter() - start

    def _undisturbed(self, tries: int) -> float:
        """Seconds; tried again if another process had the core meanwhile."""
        seconds = 0.0
        for _ in range(tries if self.threads == 1 else 1):
            calls, cpu = self._next(self._repeat), time.thread_time()
            seconds = self._clock(calls)
            if time.thread_time() - cpu > _OWN_CORE * seconds:
                break
        return seconds

    def _next(self, count: int) -> list[Call]:
        return [self._calls[i] for i in self.ring.take(count)]


def measure(case: Case, size: int, threads: Sequence[int], runs: int, device: Any) -> list[Row]:
    """A row for each number of ``threads``, all measured in the same rounds.

    What cannot be measured (no memory for it) is told in ``Row.error``.
    """
    needed = case.held(size)
    copies = device.copies(needed, size)
    room = copies * (needed + (16 << 10))
    if room + case.held(size) > device.available():
        return [
            _row(case, size, t, device, error=f"needs {room / 1e9:.1f} GB of memory")
            for t in threads
        ]
    stock = device.stock(room)
    sets = [case.build(stock, size) for _ in range(copies)]
    ring = _Ring(copies)
    ours = {t: _Contender([s.ours for s in sets], device.time, ring, t) for t in threads}
    plain = {
        name: _Contender(
            [s.plain[name] for s in sets], device.time, ring, threads[0], _PLAIN_BUDGET
        )
        for name in sets[0].plain
    }
    moved, limit = case.moved(size), device.limit(case)
    limits: dict[tuple[str, int], _Contender] = {}
    for t in threads if size >= device.small else ():
        for how, calls in device.limit_calls(limit, moved, t).items():
            limit_ring = next(iter(limits.values())).ring if limits else _Ring(len(calls))
            limits[how, t] = _Contender(calls, device.time, limit_ring, t)
    _rounds([*limits.values(), *ours.values(), *plain.values()], runs, device)
    rows = []
    for t in threads:
        time_ = Timing.of(ours[t].samples)
        beside = [
            Plain(name, timing := Timing.of(c.samples), timing.median / time_.median)
            for name, c in plain.items()
            if t == c.threads
        ]
        row = _row(case, size, t, device, time=time_, plain=beside)
        found = {how: Timing.of(c.samples) for (how, n), c in limits.items() if n == t}
        if found:
            best = min(found, key=lambda how: found[how].median)
            # Round by round: a machine that slows down for a while does so for both.
            pairs = zip(limits[best, t].samples, ours[t].samples, strict=True)
            faster = float(median(of_limit / of_ours for of_limit, of_ours in pairs))
            row = _against(row, best, found[best], device.limit_bytes(limit, moved), faster)
        rows.append(row)
    return [rows[0], *(_scaled(row, rows[0]) for row in rows[1:])]


def _scaled(row: Row, first: Row) -> Row:
    """``row`` with how many times faster it is than ``first``, and how many times memory is.

    The goal stands where memory allows it: not where 0.9 of the new limit would be less.
    """
    assert row.bytes_per_second and first.bytes_per_second
    if row.size < _SCALES_FROM:
        return row
    row = replace(row, scaling=row.bytes_per_second / first.bytes_per_second)
    memory, memory_of_one = row.limit_bytes_per_second, first.limit_bytes_per_second
    if not memory or not memory_of_one:
        return row
    row = replace(row, limit_scaling=memory / memory_of_one)
    reachable = _REACHABLE * memory / first.bytes_per_second
    if first.met is None or row.threads != 2 or reachable < _SCALING:
        return row
    return replace(row, scaling_met=(row.scaling or 0.0) >= _SCALING)


def _rounds(contenders: Sequence[_Contender], runs: int, device: Any) -> None:
    for _ in range(runs + 1):  # the first is the rehearsal
        for contender in contenders:
            contender.turn(device)


def _row(case: Case, size: int, threads: int, device: Any, **known: Any) -> Row:
    goal, limit, moved = device.goal(case, size, threads), device.limit(case), case.moved(size)
    if known.get("time"):
        known["bytes_per_second"] = moved / known["time"].median
    return Row(case.kernel, case.variant, case.n, size, threads, limit, moved, goal, **known)


def _against(row: Row, how: str, limit: Timing, limit_bytes: int, faster: float) -> Row:
    """``row`` with its limit, of which one call takes ``faster`` times as long as the kernel."""
    ratio = faster * row.moved / limit_bytes
    return replace(
        row,
        limit_how=how,
        limit_time=limit,
        limit_bytes_per_second=limit_bytes / limit.median,
        ratio=ratio,
        met=None if row.goal is None else ratio >= row.goal,
    )


def small_calls(size: int, runs: int, device: Any) -> Iterator[SmallCall]:
    """What a call costs from Python."""
    for name, goal, ours, plain in device.small_calls(size):
        kernel = _Contender([ours], device.call_time)
        ways = {k: _Contender([call], device.call_time) for k, call in plain.items()}
        _rounds([kernel, *ways.values()], runs, device)
        time_ = Timing.of(kernel.samples)
        beside = [
            Plain(k, t := Timing.of(c.samples), t.median / time_.median) for k, c in ways.items()
        ]
        met = None if goal is None else time_.median < goal
        yield SmallCall(name, size, time_, goal, met, beside)
