"""A device whose memory is this machine's and whose copies run as late as they may.

For mpisign.transports.staged: bytes that are read before they were waited for, or memory that is
given away before its copy ran, end as wrong bytes.
"""

from __future__ import annotations

import numpy as np


class OnDevice(np.ndarray):
    """An array that only a LateDevice may copy."""


def on_device(x):
    return np.ascontiguousarray(x).view(OnDevice)


class Event:
    def __init__(self, queue, place):
        self.queue, self.place = queue, place

    def done(self):
        """One more copy runs for each question."""
        if self.queue.ran < self.place:
            self.queue.run(self.queue.ran + 1)
            return False
        return True

    def wait(self):
        self.queue.run(self.place)


class Queue:
    """Copies in order, none of which runs before somebody waits for it or asks."""

    def __init__(self):
        self.copies, self.ran = [], 0

    def copy_to_host(self, array, host):
        assert isinstance(array, OnDevice) and array.nbytes == host.nbytes
        self.copies.append((host, array))

    def copy_to_device(self, host, array):
        assert isinstance(array, OnDevice) and array.nbytes == host.nbytes
        self.copies.append((array, host))

    def record(self):
        return Event(self, len(self.copies))

    def run(self, place):
        while self.ran < place:
            to, source = self.copies[self.ran]
            np.asarray(to).view(np.uint8)[:] = np.asarray(source).view(np.uint8)
            self.copies[self.ran] = None
            self.ran += 1

    def synchronize(self):
        self.run(len(self.copies))


class LateDevice:
    """``queues``: its streams; ``queue``: the one that is current."""

    def __init__(self):
        self.queues = [Queue(), Queue()]
        self.queue = self.queues[0]
        self.allocated = []

    def synchronize(self):
        for queue in self.queues:
            queue.synchronize()

    def on_device(self, array):
        return isinstance(array, OnDevice)

    def of(self, array):
        assert isinstance(array, OnDevice)
        return self.queue

    def pinned(self, nbytes):
        self.allocated.append(nbytes)
        return np.full(nbytes, 0xA5, dtype=np.uint8)


class PromptDevice(LateDevice):
    """Copies run at once, for work on the host that reads them without asking."""

    def __init__(self):
        super().__init__()
        for queue in self.queues:
            queue.copies = _AtOnce(queue)


class _AtOnce(list):
    def __init__(self, queue):
        super().__init__()
        self.queue = queue

    def append(self, copy):
        super().append(copy)
        self.queue.synchronize()
