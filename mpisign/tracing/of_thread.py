"""What a thread is about."""

from __future__ import annotations

import threading
from typing import Any


class _OfThread(threading.local):
    row: Any = None  # of the collective that this thread moves on now
    lane: Any = None  # of the rank that this thread is, in simulations


OF_THREAD = _OfThread()
