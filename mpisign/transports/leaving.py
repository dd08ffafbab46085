"""What a rank does when its program ends, so that the others do not wait for it."""

from __future__ import annotations

import atexit
import os
import weakref
from typing import Protocol


class Leaver(Protocol):
    """A transport that others may still wait for."""

    def leave(self) -> None:
        """Posts ``LEFT``; may wait a little for the other ranks."""


_OPEN: weakref.WeakSet[Leaver] = weakref.WeakSet()
_PID = os.getpid()


def at_exit(transport: Leaver) -> None:
    """Has the end of the program call ``transport.leave()``, before its wire ends.

    The wire's own exit handlers are there by now: those that came last run first.
    """
    _OPEN.add(transport)
    atexit.unregister(_leave)
    atexit.register(_leave)


def _leave() -> None:
    if os.getpid() == _PID:  # a forked child is no rank
        for transport in list(_OPEN):
            transport.leave()
