"""Progress on rank 0: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import Any

_EVERY = 5.0  # seconds between plain lines


def on_terminal() -> bool:
    """Whether a person watches standard output.

    mpirun gives ranks a pseudo-terminal even when its own output is a file; only a real terminal
    has a width.
    """
    if not sys.stdout.isatty():
        return False
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns > 0
    except OSError:
        return False


class Progress:
    """One way's progress; silent unless ``shown``."""

    def __init__(self, label: str, steps: int, shown: bool) -> None:
        self._label = label
        self._steps = steps
        self._bar: Any = None
        self._task: Any = None
        self._plain = shown and not on_terminal()
        self._told_of = ""
        self._told = time.monotonic()
        if shown and not self._plain:
            self._bar = _bar()
            self._task = self._bar.add_task(label, total=steps, accuracy="")

    def __enter__(self) -> Progress:
        self._told = time.monotonic()
        if self._bar is not None:
            self._bar.start()
        if self._plain:
            print(f"{self._label:<21} step {0:>5} of {self._steps}", flush=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._plain and error is None:
            self._tell(self._steps)

    def step(self, done: int) -> None:
        """``done`` steps are over."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done)
        elif self._plain and time.monotonic() - self._told > _EVERY:
            self._tell(done)

    def evaluated(self, done: int, accuracy: float) -> None:
        """The test accuracy, in [0, 1], after ``done`` steps."""
        self._told_of = f"; test accuracy {accuracy:.1%} at step {done}"
        if self._bar is not None:
            self._bar.update(self._task, accuracy=f"{accuracy:6.1%}")

    def _tell(self, done: int) -> None:
        self._told = time.monotonic()
        print(
            f"{self._label:<21} step {done:>5} of {self._steps}{self._told_of}",
            flush=True,
        )


def _bar() -> Any:
    from rich import progress

    return progress.Progress(
        progress.TextColumn("{task.description:<21}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("test accuracy {task.fields[accuracy]}"),
        progress.TimeElapsedColumn(),
    )
