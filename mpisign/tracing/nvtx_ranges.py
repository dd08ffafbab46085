"""NVTX ranges, which Nsight Systems and other tools show, by the nvtx package."""

from __future__ import annotations

import threading
import time
from typing import Any

try:
    import nvtx
except ImportError as error:
    raise ImportError(
        f'MPISIGN_NVTX=1 needs the nvtx package ({error}): pip install "mpisign[nvtx]"'
    ) from error


class _OfThread(threading.local):
    depth = 0


class Ranges:
    """Push and pop ranges of the domain "mpisign", thread by thread."""

    def __init__(self) -> None:
        self._domain: Any = nvtx.get_domain("mpisign")
        self._attributes: dict[str, Any] = {}  # by label: made once
        self._of_thread = _OfThread()

    def begin(self, label: str) -> float:
        """Opens a range; the time, as of ``time.perf_counter``."""
        self.push(label)
        return time.perf_counter()

    def push(self, label: str) -> None:
        """Opens a range."""
        attributes = self._attributes.get(label)
        if attributes is None:
            attributes = self._domain.get_event_attributes(message=label)
            self._attributes[label] = attributes
        self._of_thread.depth += 1
        self._domain.push_range(attributes)

    def pop(self) -> None:
        """Closes this thread's innermost range."""
        self._of_thread.depth -= 1
        self._domain.pop_range()

    def depth(self) -> int:
        """How many ranges this thread has open."""
        return self._of_thread.depth

    def pop_to(self, depth: int) -> None:
        """Closes ranges until ``depth`` are open."""
        while self._of_thread.depth > depth:
            self.pop()
