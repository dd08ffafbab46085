"""Under pytest-xdist: a test that is marked alone runs while no other test does.

Every test holds a lock that all may share, and one that is marked alone holds it for itself, over
the tests marked so that follow it. A second lock is a door: whoever waits behind an open one would
never find all others gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from pathlib import Path

import pytest


def _alone(item: pytest.Item | None) -> bool:
    return item is not None and item.get_closest_marker("alone") is not None


class Alone:
    """The plugin of one worker. ``run``: what all workers of this run are called by."""

    def __init__(self, run: str) -> None:
        folder = Path(tempfile.gettempdir())
        self._door = open(folder / f"mpisign-tests-{run}-door", "w")
        self._room = open(folder / f"mpisign-tests-{run}-room", "w")
        self._kept = False

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item, nextitem):
        alone = _alone(item)
        if not self._kept:
            fcntl.flock(self._door, fcntl.LOCK_EX)
            fcntl.flock(self._room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
            fcntl.flock(self._door, fcntl.LOCK_UN)
        try:
            return (yield)
        finally:
            self._kept = alone and _alone(nextitem)
            if not self._kept:
                fcntl.flock(self._room, fcntl.LOCK_UN)

    def pytest_sessionfinish(self):
        for lock in (self._door, self._room):
            lock.close()
            with contextlib.suppress(OSError):
                os.unlink(lock.name)
