"""How many threads a kernel may use, so that ranks that share a node do not fight for its cores."""

from __future__ import annotations

import functools
import os

from mpisign import launcher


def count() -> int:
    """Threads for a kernel: ``of_environment``, or 1 in a forked child.

    libgomp's threads do not survive a fork, and it would wait for them.
    """
    return 1 if os.getpid() != _PID else of_environment()


def for_work(amount: int) -> int:
    """``count``, or 1 at once for so little work that a second thread would only cost time."""
    return 1 if amount < _WORTH_A_THREAD else count()


_WORTH_A_THREAD = 1 << 17
_MOST = 1024  # more only fail to start
_PID = os.getpid()


@functools.cache
def of_environment() -> int:
    """``MPISIGN_NUM_THREADS``, else OMP_NUM_THREADS, else cores divided by ranks on the node."""
    for name in ("MPISIGN_NUM_THREADS", "OMP_NUM_THREADS"):
        text = os.environ.get(name)
        if text is None:
            continue
        first = text.split(",")[0].strip()  # OpenMP's lists go on with nested levels
        if first.isdecimal() and int(first) >= 1:
            return min(int(first), _MOST)
        if name == "MPISIGN_NUM_THREADS":
            raise ValueError(f"{name} must be a positive integer, got {text!r}")
    return max(1, len(os.sched_getaffinity(0)) // (launcher.local_size() or 1))
