"""Progress of a benchmark: a bar on a terminal that rich can draw on, else a line now and then."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

_EVERY = 10.0  # seconds between plain lines


class Progress:
    """Told of each step; everything goes to standard error, results go to standard output."""

    def __init__(self, steps: int) -> None:
        self._steps, self._done = steps, 0
        self._told = -_EVERY
        self._bar: Any = None
        self._task: Any = None
        if sys.stderr.isatty():
            self._bar = _bar()
        if self._bar is not None:
            self._task = self._bar.add_task("", total=steps)

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begin(self, what: str) -> None:
        """``what`` is measured next."""
        if self._bar is not None:
            self._bar.update(self._task, description=what, refresh=True)
        elif time.monotonic() - self._told >= _EVERY:
            self._told = time.monotonic()
            print(f"{self._done} of {self._steps}: {what}", file=sys.stderr, flush=True)

    def end(self) -> None:
        """It is."""
        self._done += 1
        if self._bar is not None:
            self._bar.advance(self._task)


def _bar() -> Any:
    try:
        from rich import console, progress
    except ImportError:
        return None
    return progress.Progress(
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TextColumn("{task.description}"),
        console=console.Console(stderr=True),
        transient=True,
        auto_refresh=False,  # by a thread, in the middle of what is measured
    )
