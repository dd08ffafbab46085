"""Progress: rich's bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

_EVERY = 5.0  # seconds between plain lines


def on_terminal(stream: IO[str] | None = None) -> bool:
    """Whether ``stream``, default standard output, is a terminal with a width.

    mpirun gives ranks a pseudo-terminal of no width even where its own output is a file.
    """
    stream = stream or sys.stdout
    if not stream.isatty():
        return False
    try:
        return os.get_terminal_size(stream.fileno()).columns > 0
    except OSError:
        return False


@contextmanager
def of_steps(label: str, steps: int, shown: bool) -> Iterator[Callable[..., None]]:
    """Progress of one training on standard output; silent unless ``shown``.

    Yields ``report(done, accuracy=None)``: ``done`` steps are over, of which the test accuracy, in
    [0, 1], is known where it is given.
    """
    bar, task = None, None
    if shown and on_terminal():
        from rich import progress

        bar = progress.Progress(
            progress.TextColumn("{task.description:<21}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("test accuracy {task.fields[accuracy]}"),
            progress.TimeElapsedColumn(),
        )
        task = bar.add_task(label, total=steps, accuracy="")
        bar.start()
    last, evaluated = time.monotonic(), ""

    def line(done: int) -> None:
        nonlocal last
        last = time.monotonic()
        print(f"{label:<21} step {done:>5} of {steps}{evaluated}", flush=True)

    def report(done: int, accuracy: float | None = None) -> None:
        nonlocal evaluated
        if accuracy is not None:
            evaluated = f"; test accuracy {accuracy:.1%} at step {done}"
        if bar is not None and task is not None:
            more: dict[str, Any] = {} if accuracy is None else {"accuracy": f"{accuracy:6.1%}"}
            bar.update(task, completed=done, **more)
        elif shown and accuracy is None and time.monotonic() - last > _EVERY:
            line(done)

    if shown and bar is None:
        line(0)
    try:
        yield report
        if shown and bar is None:
            line(steps)
    finally:
        if bar is not None:
            bar.stop()


@contextmanager
def of_cells(done: int, total: int, shown: bool = True) -> Iterator[Callable[..., None]]:
    """Progress of a study on standard error; silent unless ``shown``. ``done`` cells are recorded.

    Yields ``report(name, outcome=None)``: the cell ``name`` starts, or has ended with ``outcome``.
    """
    bar: Any = None
    running: list[str] = []
    if shown and on_terminal(sys.stderr):
        from rich import console, progress

        bar = progress.Progress(
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.description}"),
            console=console.Console(stderr=True),
        )
        task = bar.add_task("", total=total, completed=done)
        bar.start()

    def report(name: str, outcome: str | None = None) -> None:
        nonlocal done
        if outcome is None:
            running.append(name)
        else:
            done += 1
            running.remove(name)
            line = f"{done} of {total}: {name}: {outcome}"
            if bar is not None:
                bar.console.print(line, highlight=False, markup=False)
            elif shown:
                print(line, file=sys.stderr, flush=True)
        if bar is not None:
            bar.update(task, completed=done, description=" | ".join(running))

    try:
        yield report
    finally:
        if bar is not None:
            bar.stop()
