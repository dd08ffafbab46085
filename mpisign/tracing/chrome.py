"""MPISIGN_TRACE: a few steps of each rank in Chrome's trace format, one file a process.

The file is a JSON array. It is written at the end of each step, and whole after every write.
"""

from __future__ import annotations

import atexit
import errno
import json
import os
import socket
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mpisign import launcher
from mpisign.tracing.of_thread import OF_THREAD

_STEPS = (3, 6)  # before these ranks agree, allocate, and touch memory for the first time
_MOST = 200_000  # events of a process: some 25 MB
_GAP = 1e-3  # seconds between two looks at an exchange that count as one wait
_END = b"\n]\n"
_TRAINING, _OTHERS, _FIRST_ROW = 0, 1, 10  # rows ("threads") of a rank


def window(text: str) -> tuple[int, int]:
    """The steps [first, last) that ``MPISIGN_TRACE_STEPS`` means: "", "N" or "FIRST:LAST"."""
    if not text:
        return _STEPS
    a, colon, b = text.partition(":")
    if a.isdecimal() and (b.isdecimal() if colon else not b):
        first, last = (int(a), int(b)) if colon else (_STEPS[0], _STEPS[0] + int(a))
        if first < last:
            return first, last
    raise ValueError(
        f"MPISIGN_TRACE_STEPS must be a number of steps, or FIRST:LAST with the last one left out, "
        f"got {text!r}"
    )


class Row:
    """A collective in flight, and the row that shows it."""

    def __init__(self, lane: Lane, label: str, tid: int, about: dict[str, Any]) -> None:
        self.lane, self.label, self.tid, self.about = lane, label, tid, about
        self.start = time.perf_counter()


class Lane:
    """The spans of one rank. ``step``: how many have ended; ``recording``: whether this one is."""

    def __init__(self, rank: int | None, first: int) -> None:
        self.rank, self.step, self.recording = rank, 0, first == 0
        self.events: list[tuple[str, int, float, float, dict[str, Any]]] = []
        self.names: dict[str, int] = {}  # rows
        self.told: set[int] = set()  # rows that the file names
        self.busy: set[int] = set()
        self.thread = threading.get_ident()  # that trains
        self.wait: dict[int, int] = {}  # by row: the place of its last wait
        self.used = False
        self.training: Any = None  # what hooks of torch note

    def add(self, name: str, tid: int, start: float, end: float, **about: Any) -> None:
        """A span."""
        if len(self.events) < _MOST:  # a step may hold an evaluation
            self.events.append((name, tid, start, end, about))

    def add_wait(self, tid: int, start: float, end: float) -> None:
        """A wait, which may go on where the last one ended."""
        events, at = self.events, self.wait.get(tid, -1)
        if 0 <= at < len(events):
            name, _, before, until, about = events[at]
            if name == "wait" and start - until < _GAP:
                events[at] = name, tid, before, end, about
                return
        self.wait[tid] = len(events)
        self.add("wait", tid, start, end)

    def row_of_thread(self) -> int:
        """Of what belongs to no collective."""
        return _TRAINING if threading.get_ident() == self.thread else _OTHERS

    def row(self, label: str) -> int:
        """A row for ``label`` that no collective in flight has."""
        n, name = 1, label
        while (tid := self.names.setdefault(name, _FIRST_ROW + len(self.names))) in self.busy:
            n += 1
            name = f"{label} ({n})"
        return tid


class ChromeTrace:
    """What the ranks of this process record. ``over`` is called once there is no more to record.

    A step is one of a torch optimizer where ``by_optimizer``, else a collective.
    """

    def __init__(self, path: str, steps: str, over: Callable[[], None]) -> None:
        self._path, self._over = Path(path), over
        self.first, self.last = window(steps)
        self.by_optimizer = False
        self._lock = threading.Lock()
        self._process = Lane(launcher.rank(), self.first)
        self._lanes = [self._process]
        self._file: int | None = None
        self._end = self._written = 0
        self._epoch = time.time() - time.perf_counter()  # ranks of all machines share a time
        self._pid = os.getpid()
        self.when_over: list[Callable[[], None]] = []
        atexit.register(self.close)

    def new_lane(self) -> Lane:
        """For a thread that is a rank."""
        lane = Lane(None, self.first)
        with self._lock:
            self._lanes.append(lane)
        return lane

    def lane(self) -> Lane:
        """This thread's."""
        return OF_THREAD.lane or self._process

    def stage(self, name: str, start: float, end: float) -> None:
        """A stage, of the collective that this thread moves on now if it is in one."""
        lane = self.lane()
        if not lane.recording:
            return
        row = OF_THREAD.row
        if name == "exchange":
            lane.add_wait(lane.row_of_thread(), start, end)
        else:
            lane.add(name, lane.row_of_thread() if row is None else row.tid, start, end)

    def begin(self, label: str, about: dict[str, Any], wire: Any) -> Row:
        """A collective starts."""
        lane = self.lane()
        if lane.rank is None:
            lane.rank = wire.rank
        row = Row(lane, label, lane.row(label), about)
        lane.busy.add(row.tid)
        lane.used = True
        return row

    def waited(self, row: Row, start: float) -> None:
        """The collective goes on; it had waited for messages since ``start``."""
        if row.lane.recording:
            row.lane.add("exchange", row.tid, start, time.perf_counter())

    def end(self, row: Row, is_call: bool) -> None:
        """The collective is over. ``is_call``: see ``traced``."""
        lane = row.lane
        lane.busy.discard(row.tid)
        if lane.recording:
            lane.add(row.label, row.tid, row.start, time.perf_counter(), **row.about)
        if is_call and not self.by_optimizer:
            self.step_is_over(lane)

    def exchanged(self, label: str, start: float, **about: Any) -> None:
        """Someone else's exchange for us, from ``start`` on: it has just ended."""
        lane = self.lane()
        if lane.recording:
            lane.add("exchange", lane.row(label), start, time.perf_counter(), **about)

    def step_is_over(self, lane: Lane) -> None:
        """Writes what was recorded; the end of the last step of all ranks ends the trace."""
        if lane.recording:
            self._flush(lane)
        lane.step += 1
        lane.used = True
        lane.recording = self.first <= lane.step < self.last and self._written < _MOST
        if lane.step >= self.last and all(
            each.step >= self.last for each in self._lanes if each.used
        ):
            self.close()

    def close(self) -> None:
        """Writes what is left, and ends the trace. A second time does nothing."""
        if self._pid != os.getpid():
            return
        for lane in self._lanes:
            self._flush(lane)
        with self._lock:
            if self._file is not None:
                os.close(self._file)
            self._file, self._written = None, _MOST
        for call in self.when_over:
            call()
        self.when_over.clear()
        atexit.unregister(self.close)
        self._over()

    def abandon(self) -> None:
        """In a forked child, whose parent has the file."""
        for call in self.when_over:
            call()
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _flush(self, lane: Lane) -> None:
        events, lane.events = lane.events, []
        lane.wait.clear()
        if not events:
            return
        rank = lane.rank or 0
        lines = self._names(lane, rank, {tid for _, tid, *_ in events})
        for name, tid, start, end, about in events:
            ts, dur = round(1e6 * (start + self._epoch), 3), round(1e6 * (end - start), 3)
            about = {"step": lane.step, **about}
            more = {"ph": "X", "pid": rank, "tid": tid, "ts": ts, "dur": dur, "args": about}
            lines.append({"name": name, "cat": "mpisign", **more})
        text = ",\n".join(json.dumps(line) for line in lines).encode()
        with self._lock:
            if self._written >= _MOST:
                return
            try:
                self._write(text)
            except OSError as error:  # training goes on
                warnings.warn(f"MPISIGN_TRACE: {error}", RuntimeWarning, stacklevel=2)
                self._written = _MOST
                return
            self._written += len(events)

    def _write(self, text: bytes) -> None:
        if self._file is None:
            rank = launcher.rank()
            if rank is None:  # simulated ranks share a file
                rank = self._process.rank or 0
            path = self._path.with_name(f"{self._path.stem}.rank{rank}{self._path.suffix}")
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            text = b"[\n" + text
        else:
            text = b",\n" + text
        data = text + _END
        try:
            if os.pwrite(self._file, data, self._end) < len(data):  # over the end of before
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            os.ftruncate(self._file, self._end)  # whole, as before
            os.pwrite(self._file, _END if self._end else b"[]", self._end)
            raise
        self._end += len(text)

    def _names(self, lane: Lane, rank: int, used: set[int]) -> list[dict[str, Any]]:
        """Metadata of the rows that the file does not name yet."""
        lines = []

        def add(what: str, tid: int, **args: Any) -> None:
            lines.append({"name": what, "ph": "M", "pid": rank, "tid": tid, "args": args})

        if not lane.told:
            add("process_name", 0, name=f"rank {rank} ({socket.gethostname()} {self._pid})")
            add("process_sort_index", 0, sort_index=rank)
        names = {_TRAINING: "training", _OTHERS: "other threads"}
        names |= {tid: name for name, tid in lane.names.items()}
        for tid in sorted(used - lane.told):
            add("thread_name", tid, name=names[tid])
            add("thread_sort_index", tid, sort_index=tid)
        lane.told |= used
        return lines
