"""A bench between the ranks of a job: its libraries started, errors reported once, hangs ended."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mpisign.bench.collectives import join
from mpisign.bench.collectives.via import Via, one_line
from mpisign.bench.errors import BenchError
from mpisign.bench.record import Record
from mpisign.bench.report import Shown, check
from mpisign.bench.settings import Job
from mpisign.errors import LauncherError

_HEAD_START = 1.0  # seconds that rank 0 has for its message before a launcher ends all ranks


def run(
    settings: Job, record: Record, shown: Shown, timeout: float, work: Callable[[list[Via]], int]
) -> int:
    """Starts the library of the launcher, checks the settings, and returns the status of ``work``.

    ``work(opened)`` gets a list with that library; every other library that it starts is appended.
    Returns 2 on every rank after an error that the user can correct. Collective.
    """
    opened: list[Via] = []
    try:
        control = join.start(settings.started, None, timeout)
        opened.append(control)
        control.agreed(lambda: _check(settings, control, record, shown))
        return work(opened)
    except (BenchError, LauncherError, ImportError) as error:
        last_words(settings.rank, f"mpisign bench {settings.NAME}: error: {one_line(error)}")
        return 2
    finally:
        for via in reversed(opened):
            via.stop()


def _check(settings: Job, control: Via, record: Record, shown: Shown) -> None:
    if control.size < 2:
        name = settings.NAME
        raise BenchError(f"needs two ranks or more: mpirun -n 4 mpisign bench {name}")
    if control.rank == 0:
        check(record, shown)


def last_words(rank: int, text: str) -> None:
    """Rank 0 prints ``text`` on standard error; the others wait for it."""
    if rank == 0:
        print(text, file=sys.stderr, flush=True)
    else:
        time.sleep(_HEAD_START)


class Watchdog:
    """A thread that calls ``give_up(what)`` when something takes over ``seconds``, and exits.

    The main thread is then inside a library, and nothing else can end it.
    """

    def __init__(self, seconds: float, give_up: Callable[[str], object]) -> None:
        self.seconds = seconds
        self._give_up = give_up
        self._what, self._until = "", float("inf")
        threading.Thread(target=self._watch, name="mpisign-watchdog", daemon=True).start()

    @contextmanager
    def over(self, what: str) -> Iterator[None]:
        """``what`` is watched while the block runs."""
        self._what, self._until = what, time.monotonic() + self.seconds
        try:
            yield
        finally:
            self._until = float("inf")

    def _watch(self) -> None:
        pause = min(0.5, self.seconds / 4)
        while time.monotonic() < self._until:
            time.sleep(pause)
        self._give_up(self._what)


def watchdog(control: Via, seconds: float, text: Callable[[str], str]) -> Watchdog:
    """Ends the process with status 1 after the last words of rank 0, ``text(what)``."""

    def give_up(what: str) -> None:
        last_words(control.rank, text(what) if control.rank == 0 else "")
        os._exit(1)

    return Watchdog(seconds, give_up)
