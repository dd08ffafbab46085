"""The progress of a bench, on standard error: results go to standard output."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

from mpisign.experiments.errors import SettingsError

_EVERY = 10.0  # seconds between plain lines

#: Called with what is measured next.
Begin = Callable[[str], None]
T = TypeVar("T")


@contextmanager
def progress(steps: int, shown: bool = True) -> Iterator[Begin]:
    """Yields a function to call before each of ``steps``."""
    bar = _bar() if shown and sys.stderr.isatty() else None
    task = bar.add_task("", total=steps) if bar else None
    done, printed = -1, -_EVERY

    def begin(what: str) -> None:
        nonlocal done, printed
        done += 1
        if bar is not None:
            bar.update(task, completed=done, description=what, refresh=True)
        elif shown and time.monotonic() - printed >= _EVERY:
            printed = time.monotonic()
            print(f"{done} of {steps}: {what}", file=sys.stderr, flush=True)

    with bar or nullcontext():
        yield begin


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


class Attempts:
    """Measures contenders in turns, each until it fails. ``errors``: why, by their names."""

    def __init__(self, begin: Begin) -> None:
        self.errors: dict[Any, str] = {}
        self._begin = begin

    def __call__(self, name: Any, what: str, action: Callable[..., T], *args: Any) -> T | None:
        """``action(*args)``, or None if ``name`` fails now or failed before."""
        self._begin(what)
        if name not in self.errors:
            try:
                return action(*args)
            except SettingsError as error:
                self.errors[name] = str(error)
        return None
