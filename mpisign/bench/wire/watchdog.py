"""Ends a run that hangs: what others have hung in, no table should wait for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Watchdog:
    """A thread that calls ``give_up(what)`` once something has taken over ``seconds``.

    The main thread then sits inside a library; ``give_up`` ends the process.
    """

    def __init__(self, seconds: float, give_up: Callable[[str], None]) -> None:
        self.seconds = seconds
        self._give_up = give_up
        self._what = ""
        self._until = float("inf")
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
