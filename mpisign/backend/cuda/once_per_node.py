"""Processes of one node compile a file one after the other: the first does, the others read."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

_LONGEST = 300.0  # seconds: no kernel compiles that long


@contextlib.contextmanager
def one_at_a_time(name: str) -> Iterator[None]:
    """A context in which no other process of this user and node is, for this ``name``.

    The lock is a file in the folder for temporary files, which is the node's own, and ends with its
    process. Whoever cannot have one, or has waited very long, goes on without: what it guards is
    time, not results. So does whoever keeps CuPy's cache in memory, where nobody else reads it.
    """
    lock = None
    if os.environ.get("CUPY_CACHE_IN_MEMORY") != "1":
        with contextlib.suppress(ImportError, OSError):  # Windows; a full or foreign folder
            lock = _locked(Path(tempfile.gettempdir()) / f"mpisign-{os.getuid()}-{name}.lock")
    try:
        yield
    finally:
        if lock is not None:
            os.close(lock)


def _locked(path: Path) -> int | None:
    """The file, open and locked; None if others had it for too long."""
    import fcntl

    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    until = time.monotonic() + _LONGEST
    try:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return file
            except BlockingIOError:
                if time.monotonic() > until:
                    os.close(file)
                    return None
            time.sleep(0.01)
    except BaseException:
        os.close(file)
        raise
