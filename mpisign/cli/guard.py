"""Early ends of a job: all ranks end together, and one of them says why."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import NoReturn

from mpisign.experiments.progress import on_terminal

#: The exit status where the reader of a pipe has gone, as shells have it.
PIPE_CLOSED = 128 + signal.SIGPIPE
_SHOW_CURSOR = "\x1b[?25h"
_SOURCE = re.compile(r"^\[[^]]*\] *")  # Gloo's messages start with a path of its build machine


def end_on_signals(speaker: bool) -> None:
    """From now on Ctrl-C and the launcher's SIGTERM end this process at once, in one line."""
    readable, writable = os.pipe()
    os.set_blocking(writable, False)
    signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: None)

    def wait() -> None:
        number = os.read(readable, 1)[0]
        if speaker:
            why = "interrupted" if number == signal.SIGINT else "ended by the launcher"
            cursor = _SHOW_CURSOR if on_terminal() else ""
            # Not print: the main thread may hold the stream's lock.
            os.write(2, f"{cursor}\nmpisign: {why}\n".encode())
        os._exit(128 + number)

    threading.Thread(target=wait, name="mpisign-signals", daemon=True).start()


def abort_on_error(action: Callable[[], int], rank: Callable[[], int | None]) -> int:
    """``action()``; an exception that leaves it ends all ranks of the job, with its traceback."""
    try:
        return action()
    except BaseException as error:
        if isinstance(error, SystemExit):
            raise
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
