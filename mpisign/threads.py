"""How many threads a kernel may use, so that ranks that share a node do not fight for its cores."""

from __future__ import annotations

import functools
import os

from mpisign import launcher


@functools.cache
def count() -> int:
    """``MPISIGN_NUM_THREADS``, else OMP_NUM_THREADS, else cores divided by ranks on the node."""
    for name in ("MPISIGN_NUM_THREADS", "OMP_NUM_THREADS"):
        text = os.environ.get(name)
        if text is None:
            continue
        if text.isdigit() and int(text) >= 1:
            return int(text)
        if name == "MPISIGN_NUM_THREADS":
            raise ValueError(f"{name} must be a positive integer, got {text!r}")
    return max(1, len(os.sched_getaffinity(0)) // (launcher.local_size() or 1))
