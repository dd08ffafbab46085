"""Counts that a kernel left on the device, read without a wait of the host."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpisign.transports.base import Bytes, Polled, Steps
from mpisign.transports.staged import CopyEvent, Device

_NBYTES = 8  # of an int64


class CountReader:
    """Pinned memory for counts, reused: allocating it would wait for the device.

    ``device``: default ``mpisign.backend.cuda.streams``.
    """

    def __init__(self, device: Device | None = None) -> None:
        self._device = device
        self._free: list[Bytes] = []

    def read(self, count: Any) -> Steps[int]:
        """The number in ``count``: an int, or an int64 scalar on a device.

        A count on a device is copied to pinned memory on its stream, behind the kernels that made
        it. The collective waits for the copy as for an exchange; others move meanwhile.
        """
        if isinstance(count, (int, np.integer)):
            return int(count)
        if self._device is None:
            from mpisign.backend.cuda import streams

            self._device = streams
        # Not handed back if the collective breaks off: the copy may still write to it.
        room = self._free.pop() if self._free else self._device.pinned(_NBYTES)
        stream = self._device.of(count)
        stream.copy_to_host(count, room)
        yield _Copied(stream.record(), (count, room))
        value = int(room.view(np.int64)[0])
        self._free.append(room)
        return value


class _Copied(Polled):
    """A copy in flight, which ``memory`` outlives."""

    def __init__(self, event: CopyEvent, memory: Any) -> None:
        self._event, self._memory = event, memory

    def _advance(self) -> bool:
        return self._event.done()
