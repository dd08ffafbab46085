"""Progress: rich's bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import IO, Any

_EVERY = 5.0  # seconds between plain lines


def on_terminal(stream: IO[str] | None = None) -> bool:
    """Whether ``stream``, default standard output, is a terminal with a width."""
    stream = stream or sys.stdout
    if not stream.isatty():
        return False
    try:  # mpirun gives ranks a pseudo-terminal of no width even where its output is a file
        return os.get_terminal_size(stream.fileno()).columns > 0
    except OSError:
        return False


def _bar(shown: bool, stream: IO[str], *columns: str) -> Any:
    """rich's bar on ``stream`` of texts and of columns by their names; None where none is drawn."""
    if not (shown and on_terminal(stream)):
        return None
    from rich import console, progress

    made = [getattr(progress, c)() if c.endswith("Column") else c for c in columns]
    return progress.Progress(*made, console=console.Console(file=stream))


@contextmanager
def of_steps(label: str, steps: int, shown: bool) -> Iterator[Callable[..., None]]:
    """Yields ``report(done, accuracy=None)`` of one training, for standard output."""
    columns = ("BarColumn", "MofNCompleteColumn", "test accuracy {task.fields[accuracy]}")
    bar = _bar(
        shown,
        sys.stdout,
        "{task.description:<21}",
        *columns,
        "TimeElapsedColumn",
        "TimeRemainingColumn",
    )
    task = bar and bar.add_task(label, total=steps, accuracy="")
    began = last = time.monotonic()
    evaluated, reached = "", 0

    def line(done: int) -> None:
        nonlocal last
        last = time.monotonic()
        if shown and bar is None:
            more = f"; {left(last - began, done, steps - done)}" if 0 < done < steps else ""
            print(f"{label:<21} step {done:>5} of {steps}{evaluated}{more}", flush=True)

    def report(done: int, accuracy: float | None = None) -> None:
        nonlocal evaluated, reached
        reached = done
        if accuracy is not None:
            evaluated = f"; test accuracy {accuracy:.1%} at step {done}"
        if bar is not None:
            more = {} if accuracy is None else {"accuracy": f"{accuracy:6.1%}"}
            bar.update(task, completed=done, **more)
        elif accuracy is None and time.monotonic() - last > _EVERY:
            line(done)

    with bar or nullcontext():
        line(0)
        yield report
        line(reached)


def left(seconds: float, done: int, remaining: int) -> str:
    """How long ``remaining`` cells, or steps, take where ``done`` took ``seconds``, in words."""
    estimate = seconds / done * remaining
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if estimate >= 2 * size:
            return f"about {estimate / size:.0f} {unit} left"
    return f"about {estimate:.0f} s left"


@contextmanager
def of_cells(done: int, total: int, shown: bool = True) -> Iterator[Callable[..., None]]:
    """Yields ``report(name, outcome=None)`` of a study's cells, of which ``done`` are recorded."""
    columns = ("BarColumn", "MofNCompleteColumn", "TimeElapsedColumn", "TimeRemainingColumn")
    bar = _bar(shown, sys.stderr, *columns, "{task.description}")
    task = bar and bar.add_task("", total=total, completed=done)
    running: list[str] = []
    before, began = done, time.monotonic()

    def report(name: str, outcome: str | None = None) -> None:
        nonlocal done
        if outcome is None:
            running.append(name)
        else:
            done += 1
            running.remove(name)
            line = f"{done} of {total}: {name}: {outcome}"
            if done < total:
                line += f"; {left(time.monotonic() - began, done - before, total - done)}"
            if bar is not None:
                bar.console.print(line, highlight=False, markup=False)
            elif shown:
                print(line, file=sys.stderr, flush=True)
        if bar is not None:
            bar.update(task, completed=done, description=" | ".join(running))

    with bar or nullcontext():
        yield report
