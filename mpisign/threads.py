"""How many threads a kernel may use, so that ranks that share a node do not fight for its cores."""

from __future__ import annotations

import functools
import os

from mpisign import launcher


@functools.cache
def count() -> int:
    """``MPISIGN_NUM_THREADS``, else this process's cores divided by the ranks on the node."""
    text = os.environ.get("MPISIGN_NUM_THREADS")
    if text is None:
        return max(1, len(os.sched_getaffinity(0)) // (launcher.local_size() or 1))
    if not text.isdigit() or int(text) < 1:
        raise ValueError(f"MPISIGN_NUM_THREADS must be a positive integer, got {text!r}")
    return int(text)
