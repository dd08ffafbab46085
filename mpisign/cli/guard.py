"""Early ends of a job: all ranks end together, and one of them says why."""

from __future__ import annotations

import os
import re
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import NoReturn

from mpisign import request_stop
from mpisign.experiments.progress import on_terminal

#: The exit status where the reader of a pipe has gone, as shells have it.
PIPE_CLOSED = 128 + signal.SIGPIPE
_SHOW_CURSOR = "\x1b[?25h"
_SOURCE = re.compile(r"^\[[^]]*\] *")  # Gloo's messages start with a path of its build machine
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_GRACE = 15.0  # seconds from a request to stop, within which a rank ends; Slurm's are 30


class Signals:
    """Ctrl-C, the launcher's SIGTERM and SIGUSR1 end this process at once, in one line.

    After ``ask_first`` the first of them asks all ranks to stop. A second one, or 15 seconds in
    which this rank did not end, still ends it. ``number``: of what came, 0 if nothing.
    """

    def __init__(self, speaker: bool) -> None:
        self.number = 0
        self._speaker, self._asks = speaker, False
        self._readable, writable = os.pipe()
        os.set_blocking(writable, False)
        signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
        for number in _ENDING:
            signal.signal(number, lambda number, frame: None)
        # A thread: the main one may be inside MPI.
        threading.Thread(target=self._wait, name="mpisign-signals", daemon=True).start()

    def ask_first(self) -> None:
        """From now on there are steps to stop after."""
        self._asks = True

    def end(self) -> NoReturn:
        """Ends this process for what came."""
        if self._speaker:
            why = {signal.SIGINT: "interrupted", signal.SIGTERM: "ended by the launcher"}
            text = why.get(signal.Signals(self.number), signal.Signals(self.number).name)
            cursor = _SHOW_CURSOR if on_terminal() else ""
            # Not print: the main thread may hold the stream's lock.
            os.write(2, f"{cursor}\nmpisign: {text}\n".encode())
        os._exit(128 + self.number)

    def _wait(self) -> None:
        self.number = os.read(self._readable, 1)[0]
        if self._asks:
            request_stop()
            select.select([self._readable], [], [], _GRACE)
        self.end()


def end_on_signals(speaker: bool) -> Signals:
    """From now on signals end this process, in one line. ``speaker``: whether it prints it."""
    return Signals(speaker)


def abort_on_error(
    action: Callable[[], int], rank: Callable[[], int | None], signals: Signals | None = None
) -> int:
    """``action()``; an exception that leaves it ends all ranks of the job, with its traceback.

    Not where ``signals`` came: then other ranks have ended too.
    """
    try:
        return action()
    except BaseException as error:
        if isinstance(error, SystemExit):
            raise
        if signals is not None and signals.number:
            signals.end()
        if isinstance(error, BrokenPipeError):  # the reader has gone
            drop_output()
            _end_all_ranks(PIPE_CLOSED)
        if type(error).__name__ == "HorovodInternalError":
            text = f"lost another rank: {_SOURCE.sub('', str(error).strip())}\n"
        else:
            text = "".join(traceback.format_exception(error))
        number = rank()
        prefix = "mpisign: " if number is None else f"mpisign, rank {number}: "
        sys.stdout.flush()
        sys.stderr.write(prefix + text)
        sys.stderr.flush()
        _end_all_ranks()


def drop_output() -> None:
    """What is left in the buffer goes nowhere, or the interpreter would complain at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _end_all_ranks(status: int = 1) -> NoReturn:
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is not None and mpi.Is_initialized() and not mpi.Is_finalized():
        if mpi.COMM_WORLD.Get_size() > 1:
            mpi.COMM_WORLD.Abort(status)
    # Not sys.exit: Horovod's thread would wait for the other ranks.
    os._exit(status)
