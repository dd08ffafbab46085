"""How NCCL starts: its library, its unique id, and timeouts for calls that cannot be cancelled."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from mpisign.errors import CollectiveError, WireError
from mpisign.transports.base import Pending, Transport

_ID = 128  # NCCL_UNIQUE_ID_BYTES
_TEXT = 383  # bytes of an error text


def load() -> Any:
    """The module cupy.cuda.nccl with a library behind it; ImportError that says what to install."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # CuPy's own advice; ours follows
            from cupy.cuda import nccl
    except ImportError as error:
        raise ImportError(
            "NCCL needs CuPy: pip install cupy-cuda12x nvidia-nccl-cu12 "
            "(CUDA 13: cupy-cuda13x nvidia-nccl-cu13)"
        ) from error
    if not nccl.available:
        raise ImportError(
            "CuPy finds no libnccl.so.2: pip install nvidia-nccl-cu12 (CUDA 13: nvidia-nccl-cu13)"
        )
    return nccl


def agree(
    control: Transport, prepare: Callable[[], Any], tag: int, seconds: float
) -> tuple[Any, bytes]:
    """(NCCL's module from ``prepare()``, rank 0's unique id), once all ranks have both. Collective.

    Wire: an allgather of 512 bytes a rank: the id (rank 0's), 1 if ``prepare`` raised, the error as
    UTF-8; then an allgather of a byte, as a barrier. CollectiveError, the same on all ranks, if one
    raised; WireError if one is missing after ``seconds``.
    """
    row, nccl = np.zeros(_ID + 1 + _TEXT, dtype=np.uint8), None
    try:
        nccl = prepare()
        if control.rank == 0:
            row[:_ID] = np.frombuffer(_as_bytes(nccl.get_unique_id()), dtype=np.uint8)
    except Exception as error:
        text = f"{type(error).__name__}: {error}".encode()[:_TEXT]
        row[_ID] = 1
        row[_ID + 1 : _ID + 1 + len(text)] = np.frombuffer(text, dtype=np.uint8)
    rows = np.empty((control.size, row.size), dtype=np.uint8)
    wait(control.start_allgather(row, list(rows), tag), "start", seconds)
    for rank in np.flatnonzero(rows[:, _ID]).tolist():
        why = rows[rank, _ID + 1 :].tobytes().rstrip(b"\0").decode(errors="replace")
        raise CollectiveError(f"NCCL cannot start: rank {rank}: {why}")
    # NCCL's start cannot be cancelled: no rank begins before all are here.
    bytes_ = np.zeros((control.size + 1, 1), dtype=np.uint8)
    wait(control.start_allgather(bytes_[-1], list(bytes_[:-1]), tag), "start", seconds)
    return nccl, rows[0, :_ID].tobytes()


def communicator(nccl: Any, size: int, unique_id: bytes, rank: int) -> Any:
    """NCCL's communicator; blocks until all ranks have called."""
    try:
        return nccl.NcclCommunicator(size, unique_id, rank)
    except TypeError:  # before CuPy 14 the id is a tuple of signed numbers
        return nccl.NcclCommunicator(size, tuple(np.frombuffer(unique_id, np.int8).tolist()), rank)


def wait(pending: Pending, what: str, seconds: float) -> None:
    """WireError, with the missing ranks if known, unless it completes in time."""
    if not pending.wait(seconds):
        raise timed_out(what, seconds, pending.missing())


def timed_out(what: str, seconds: float, missing: list[int] | None = None) -> WireError:
    """The error of ``wait`` and ``within``."""
    who = f": ranks {', '.join(map(str, missing))} did not come" if missing else ""
    return WireError(f"NCCL: {what} took over {seconds:g} s{who}")


def within(seconds: float, what: str, action: Callable[[], Any]) -> Any:
    """``action()`` in a thread, which is abandoned once the time is up (WireError).

    The thread begins on device 0, as every thread does.
    """
    result: list[Any] = []
    errors: list[BaseException] = []

    def act() -> None:
        try:
            result.append(action())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=act, name=f"mpisign-nccl-{what}", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise timed_out(what, seconds)
    if errors:
        raise WireError(f"NCCL: {what}: {errors[0]} (NCCL_DEBUG=WARN tells more)") from errors[0]
    return result[0]


def _as_bytes(unique_id: Any) -> bytes:
    return unique_id if isinstance(unique_id, bytes) else np.array(unique_id, np.int8).tobytes()
