"""Spans of what this process does: as NVTX ranges, and as a trace file of a few steps.

``on`` is the one thing that hot paths look at. It is False unless ``MPISIGN_NVTX`` or
``MPISIGN_TRACE`` is set, and False again once the trace has its steps.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

from mpisign.tracing.of_thread import OF_THREAD

if TYPE_CHECKING:
    from mpisign.tracing.chrome import ChromeTrace
    from mpisign.tracing.nvtx_ranges import Ranges

#: Stages by the names that they have in traces, where these differ from those of mpisign.stats.
SHOWN = {"vote": "tally"}

on = False
trace: ChromeTrace | None = None
ranges: Ranges | None = None


def clock(stage: str) -> Callable[[], float]:
    """What is called where a stage begins: ``time.perf_counter``, which opens a range with NVTX."""
    if ranges is None:
        return time.perf_counter
    return functools.partial(ranges.begin, SHOWN.get(stage, stage))


def end_stage(stage: str, start: float, end: float) -> None:
    """Where ``on``: a stage that began with ``clock`` is over."""
    if ranges is not None:
        ranges.pop()
    if trace is not None:
        trace.stage(SHOWN.get(stage, stage), start, end)


def traced(
    label: str, steps: Callable[[Any], Any], is_call: bool, **about: Any
) -> Callable[[Any], Any]:
    """``steps``, the generator function of a collective, with its spans. Where ``on``.

    ``label``: of its row. ``is_call``: it counts as a step where no optimizer takes steps.
    ``about``: what the trace says of it.
    """

    def run(wire: Any) -> Generator[Any, None, Any]:
        row = None if trace is None else trace.begin(label, about, wire)
        running = steps(wire)
        try:
            while True:
                outer = _enter(label, row)
                try:
                    pending = next(running)
                except StopIteration as stop:
                    return stop.value
                finally:
                    _leave(outer)
                start = time.perf_counter()
                yield pending
                if row is not None and trace is not None:
                    trace.waited(row, start)
        finally:
            running.close()
            if row is not None and trace is not None:
                trace.end(row, is_call)

    return run


def _enter(label: str, row: Any) -> tuple[Any, int]:
    depth = 0
    if ranges is not None:
        depth = ranges.depth()
        ranges.push(label)
    outer, OF_THREAD.row = OF_THREAD.row, row
    return outer, depth


def _leave(outer: tuple[Any, int]) -> None:
    OF_THREAD.row, depth = outer
    if ranges is not None:
        ranges.pop_to(depth)  # also what an error has left open


def thread_is_a_rank() -> None:
    """This thread is a simulated rank: its spans are apart from those of others."""
    if trace is not None:
        OF_THREAD.lane = trace.new_lane()


def is_over() -> None:
    """The trace has its steps."""
    global on, trace
    trace = None
    on = ranges is not None


def _in_child() -> None:
    """A forked child is no rank: it has no trace. Its ranges are its own."""
    if trace is not None:
        trace.abandon()
    is_over()


def _start() -> None:
    global on, trace, ranges
    if os.environ.get("MPISIGN_NVTX", "0") not in ("", "0"):
        from mpisign.tracing.nvtx_ranges import Ranges

        ranges = Ranges()
    if path := os.environ.get("MPISIGN_TRACE"):
        from mpisign.tracing.chrome import ChromeTrace

        trace = ChromeTrace(path, os.environ.get("MPISIGN_TRACE_STEPS", ""), is_over)
        os.register_at_fork(after_in_child=_in_child)
    on = trace is not None or ranges is not None


_start()
