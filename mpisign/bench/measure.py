"""The timing loop of the benches: contenders in turns, medians and quartiles of their samples."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Call = Callable[[], Any]

_MANY = 1000  # calls of a sample, at most
_OWN_CORE = 0.95  # share of a sample's time that this thread had the core
_LONG = 0.2  # seconds from which a sample is not repeated
_WIDE = 0.1  # spread of a limit above which the machine had other work


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: median and quartiles of ``runs`` samples."""

    median: float
    low: float
    high: float
    runs: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Timing:
        """Summarises samples in seconds."""
        low, median, high = (float(q) for q in np.percentile(samples, (25, 50, 75)))
        return cls(median, low, high, len(samples))

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, as a share of the median."""
        return (self.high - self.low) / 2 / self.median


def elapsed(calls: Sequence[Call]) -> float:
    """Seconds that ``calls`` take together."""
    start = time.perf_counter()
    for call in calls:
        call()
    return time.perf_counter() - start


class Ring:
    """The order in which calls use their sets of arguments.

    Contenders with the same sets share one ring: otherwise a set that one of them has just read
    would be in the caches for the next.
    """

    def __init__(self, sets: int) -> None:
        self._sets, self._at = sets, 0

    def take(self, count: int) -> list[int]:
        """Returns the numbers of the next ``count`` sets."""
        first, self._at = self._at, (self._at + count) % self._sets
        return [i % self._sets for i in range(first, first + count)]


class Contender:
    """Takes one sample in every round. ``calls``: the same call on each set of arguments."""

    def __init__(
        self, calls: Sequence[Call], ring: Ring | None = None, *,
        clock: Callable[[Sequence[Call]], float] = elapsed, threads: int = 1,
        budget: float = float("inf"), repeat: int = 0,
        prepare: Callable[[int], object] | None = None,
    ) -> None:  # fmt: skip
        self.calls, self.ring, self.threads = calls, ring or Ring(len(calls)), threads
        self.samples: list[float] = []
        self._clock, self._budget, self._repeat, self._prepare = clock, budget, repeat, prepare
        self._warm = False

    @property
    def timing(self) -> Timing:
        """The samples so far."""
        return Timing.of(self.samples)

    def turn(self, device: Any) -> None:
        """Takes one sample; the first turn warms up and finds how often to repeat a call."""
        if self._budget <= 0:
            return
        start = time.perf_counter()
        with device.threads(self.threads):
            if self._warm:
                self.samples.append(self._undisturbed(device.tries) / self._repeat)
                self._budget -= time.perf_counter() - start
            else:
                self._warm_up(device.sample)

    def _warm_up(self, sample: float) -> None:
        self._warm = True
        self._clock(self._next(1))
        once = self._clock(self._next(1))
        self._repeat = self._repeat or min(_MANY, max(1, round(sample / max(once, 1e-9))))
        if once > self._budget:  # this sample is the only one
            self.samples.append(once)
            self._budget = 0.0

    def _undisturbed(self, tries: int) -> float:
        """Seconds of a sample, repeated if another process had the core meanwhile."""
        seconds = 0.0
        for _ in range(tries if self.threads == 1 and self._prepare is None else 1):
            calls, cpu = self._next(self._repeat), time.thread_time()
            seconds = self._clock(calls)
            if seconds > _LONG or time.thread_time() - cpu > _OWN_CORE * seconds:
                break
        return seconds

    def _next(self, count: int) -> list[Call]:
        sets = self.ring.take(count)
        if self._prepare is not None:
            self._prepare(sets[0])
        return [self.calls[i] for i in sets]


def rounds(contenders: Sequence[Contender], runs: int, device: Any) -> None:
    """``runs`` samples of each contender, in turns, after one turn to warm up."""
    for _ in range(runs + 1):
        for contender in contenders:
            contender.turn(device)


def busy(limits: Sequence[Timing], consequence: str) -> str:
    """A warning if the machine had other work during the measurements of ``limits``, else ""."""
    wide = sum(limit.spread > _WIDE for limit in limits)
    if wide * 5 < len(limits) or not wide:
        return ""
    return (
        f"THE MACHINE WAS BUSY: {wide} of {len(limits)} measurements of the limit spread by more "
        f"than {_WIDE:.0%}. {consequence}"
    )
