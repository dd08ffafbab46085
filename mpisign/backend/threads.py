"""How many threads a kernel may use, so that the ranks of a node share its cores."""

from __future__ import annotations

import functools
import os

from mpisign import launcher


def count() -> int:
    """Threads for a kernel: ``of_environment``, or 1 in a forked child.

    libgomp waits for its threads, which do not survive a fork.
    """
    return 1 if os.getpid() != _PID else of_environment()


def for_work(amount: int) -> int:
    """``count``, or 1 where there is too little work for a second thread to pay off."""
    return 1 if amount < WORTH_A_THREAD else count()


WORTH_A_THREAD = 1 << 17
_MOST = 1024  # more only fail to start
_PID = os.getpid()


@functools.cache
def of_environment() -> int:
    """``MPISIGN_NUM_THREADS``, else OMP_NUM_THREADS, else cores divided by ranks on the node."""
    for name in ("MPISIGN_NUM_THREADS", "OMP_NUM_THREADS"):
        text = os.environ.get(name)
        if text is None:
            continue
        first = text.split(",")[0].strip()  # of OpenMP's list, an entry a nesting level
        if first.isdecimal() and int(first) >= 1:
            return min(int(first), _MOST)
        if name == "MPISIGN_NUM_THREADS":
            raise ValueError(f"{name} must be a positive integer, got {text!r}")
    return max(1, len(os.sched_getaffinity(0)) // (launcher.local_size() or 1))
