"""Turns of all ranks: some calls, each behind a barrier; the slowest rank's time is a call's.

A barrier before every call, as before every step of training: ranks start together, and no call
hides in the end of the one before. Blocks of calls would let a rank run ahead, which an allgather
may and an allreduce may not.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from mpisign.bench.collectives import nodes as nodes_
from mpisign.bench.collectives.method import CollectiveMethod, Gradient, Running
from mpisign.bench.collectives.nodes import Nodes
from mpisign.bench.collectives.via import Via, one_line
from mpisign.bench.runner import Watchdog
from mpisign.experiments.errors import SettingsError
from mpisign.stats import stats

_TURN = 0.05  # seconds of a turn of short calls, about
_CALLS = 25  # in a turn, at most: over 200 in the 9 turns of the default
_WARM = 2  # calls after the first: memory is warm then

#: Bytes of a turn: sent, received (mpisign.stats, mean over ranks), sent, received (per node).
Moved = tuple[float, float, float, float]
Floats = npt.NDArray[np.float64]


@dataclass
class Contestant:
    """A method over one library at one size. ``error``: why it is not measured."""

    via: Via
    method: CollectiveMethod
    running: Running | None = None
    error: str = ""
    calls: int = 1
    spent: float = 0.0
    samples: list[float] = field(default_factory=list)
    #: Of a call.
    bytes: list[Moved] = field(default_factory=list)

    @property
    def label(self) -> str:
        return f"{self.method.label} over {self.via.name}"


class Clock:
    """Times calls on all ranks. Every method is collective."""

    def __init__(self, control: Via, nodes: Nodes, watchdog: Watchdog, time_limit: float) -> None:
        self.control, self.nodes, self.watchdog = control, nodes, watchdog
        self.time_limit = time_limit
        self._own: tuple[float, ...] = (0.0, 0.0)

    def calibrate(self) -> None:
        """Counts the bytes of a barrier, which are subtracted from later turns."""
        empty = [self.timed(lambda: None, _CALLS)[1][2:] for _ in range(5)]
        self._own = tuple(np.median(empty, axis=0) / (_CALLS + 1))

    def warm_up(self, contestant: Contestant, gradient: Gradient) -> None:
        """Starts it, checks its result, and finds how many calls make a turn."""
        what = f"{contestant.label} ({gradient.length:,} coordinates, first call)"
        with self.watchdog.over(what):
            try:
                running = self.control.agreed(lambda: contestant.method.start(gradient))
                contestant.running = running
                running.prepare()
                seconds, moved = self.timed(running.call, 1)
                self.control.agreed(running.check)
                self._check_replicas(running)
                if seconds[0] < self.time_limit:
                    running.prepare()
                    seconds, moved = self.timed(running.call, _WARM)
                    fastest = max(float(seconds.min()), 1e-9)
                    contestant.calls = int(min(_CALLS, max(1, _TURN // fastest)))
                else:
                    self._book(contestant, seconds, moved)  # the only sample
            except SettingsError as error:
                contestant.error = str(error)

    def turn(self, contestant: Contestant, size: int) -> None:
        """Takes a turn's samples, unless the method failed or has had its time."""
        running = contestant.running
        if contestant.error or running is None or contestant.spent >= self.time_limit:
            return
        with self.watchdog.over(f"{contestant.label} ({size:,} coordinates)"):
            start = time.perf_counter()
            try:
                running.prepare()
                self._book(contestant, *self.timed(running.call, contestant.calls))
            except SettingsError as error:
                contestant.error = str(error)
            # Not each rank's own clock: all ranks must agree on which method is over.
            spent = self.control.gather(np.array([time.perf_counter() - start]))
            contestant.spent += float(spent.max())

    def end(self, contestant: Contestant) -> None:
        """After the last turn: frees what the method holds, unless it failed."""
        running = contestant.running
        if contestant.error or running is None:
            return
        with self.watchdog.over(f"{contestant.label} (its end)"):
            try:
                self.control.agreed(running.end)
            except SettingsError as error:
                contestant.error = str(error)

    def _book(self, contestant: Contestant, seconds: Floats, moved: Moved) -> None:
        n = len(seconds)
        contestant.samples += seconds.tolist()
        own = (0.0, 0.0, *((n + 1) * barrier for barrier in self._own))
        sent, received, out, into = (max(0.0, a - b) / n for a, b in zip(moved, own, strict=True))
        contestant.bytes.append((sent, received, out, into))
        if seconds.sum() >= self.time_limit:
            contestant.spent = self.time_limit

    def timed(self, call: Callable[[], object], calls: int) -> tuple[Floats, Moved]:
        """Each call's seconds on its slowest rank: (calls,); and the bytes of the turn.

        Raises SettingsError if a rank failed.
        """
        text = ""
        own = np.zeros(calls)
        # Before the barrier: behind it another rank may be faster, and its bytes here already.
        before = self._counted()
        for i in range(calls):
            self.control.barrier()
            start = time.perf_counter()
            try:
                if not text:
                    call()
            except Exception as error:
                text = one_line(error)
            own[i] = time.perf_counter() - start
        self.control.barrier()
        moved = [b - a for a, b in zip(before, self._counted(), strict=True)]
        rows = self.control.gather(np.array([*moved, bool(text), *own], dtype=np.float64))
        if rows[:, 4].any():
            texts = self.control.gather_text(text)
            raise SettingsError(texts[int(np.flatnonzero(rows[:, 4])[0])])
        sent, received = rows[:, 0].mean(), rows[:, 1].mean()
        out, into = (nodes_.per_node(self.nodes, rows[:, i]) for i in (2, 3))
        return rows[:, 5:].max(axis=0), (float(sent), float(received), out, into)

    def _counted(self) -> tuple[int, int, int, int]:
        exchange, interface = stats().stages["exchange"], self.nodes.interface
        on_link = nodes_.counted(interface) if interface else (0, 0)
        return (exchange.sent, exchange.received, *on_link)

    def _check_replicas(self, running: Running) -> None:
        """SettingsError unless all ranks have the same result, bit for bit."""
        if running.result is None:
            return
        result = np.ascontiguousarray(running.result())
        digest = hashlib.blake2b(result.view(np.uint8).data, digest_size=32).digest()
        rows = self.control.gather(np.frombuffer(digest, dtype=np.uint8))
        if (rows != rows[0]).any():
            odd = [str(r) for r in range(len(rows)) if (rows[r] != rows[0]).any()]
            raise SettingsError(f"wrong: rank 0 and {', '.join(odd)} have different results")
