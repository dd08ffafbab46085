"""What the host waits for where gradients lie on a device, and which thread ends what is in flight.

The device is played by tests/late_device.py: no copy runs before somebody asks for it.
"""

from __future__ import annotations

import threading

import numpy as np
import pytest
from late_device import LateDevice, on_device

from mpisign import simulation
from mpisign.compressors import PackContext, Sign, Signum
from mpisign.engine import progress
from mpisign.engine.device_count import CountReader
from mpisign.engine.in_flight import IN_FLIGHT


def count_of(value):
    return on_device(np.array([value], dtype=np.int64))


def test_a_count_is_read_behind_its_copy_and_never_before():
    device = LateDevice()
    reader = CountReader(device)
    reading = reader.read(count_of(7))
    pending = next(reading)
    assert device.queue.ran == 0, "the host waited for the device"
    assert not pending.done() and pending.done()
    with pytest.raises(StopIteration) as end:
        next(reading)
    assert end.value.value == 7


def test_counts_in_flight_have_memory_of_their_own_which_is_used_again():
    device = LateDevice()
    reader = CountReader(device)
    for _ in range(3):
        readings = [reader.read(count_of(n)) for n in (3, 4)]
        for pending in [next(r) for r in readings]:
            assert pending.wait(5)
        found = []
        for r in readings:
            with pytest.raises(StopIteration) as end:
                next(r)
            found.append(end.value.value)
        assert found == [3, 4]
    assert device.allocated == [8, 8]


def test_a_count_of_the_host_waits_for_nothing():
    with pytest.raises(StopIteration) as end:
        next(CountReader(LateDevice()).read(5))
    assert end.value.value == 5


class Count:
    """Of NaNs, on a device: whoever asks for the number would drain the stream."""

    def __init__(self, added=1):
        self.added = added

    def __radd__(self, other):
        return self if not isinstance(other, Count) else Count(self.added + other.added)

    __add__ = __radd__

    def __int__(self):
        raise AssertionError("the stream was drained within backward")

    __index__ = __bool__ = __int__


class Gradient:
    is_cuda = True


@pytest.mark.parametrize("compressor", [Sign(), Signum()])
def test_packing_leaves_the_count_on_the_device(compressor, monkeypatch):
    count = Count()
    monkeypatch.setattr(type(compressor), "_pack", lambda *_: count)
    context = PackContext(seed=0, step=0, rank=0)
    assert compressor.pack([Gradient()], [{}], None, [0], context) is count


class Gate:
    """An exchange that is over when it is opened."""

    def __init__(self):
        self.opened = threading.Event()

    def done(self):
        return self.opened.is_set()

    def wait(self, seconds=None):
        return self.opened.wait(seconds)

    def missing(self):
        return []


def in_thread(function):
    """Runs it in a thread of its own; False if it has not returned within 5 s."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    thread.join(5)
    return not thread.is_alive()


@pytest.mark.parametrize("starts_here", [True, False])
def test_finish_all_ends_whichever_thread_ended_what_another_one_started(starts_here):
    """A CUDA backward runs in a thread of its own, which starts what the main thread awaits."""

    def rank(comm):
        engine, gate = comm.engine.progress, Gate()
        handles, listed, started, ended = [], [], threading.Event(), threading.Event()

        def steps(wire):
            yield gate
            return 1

        def start():
            handles.append(engine.submit("test", steps))
            gate.opened.set()
            started.set()
            assert ended.wait(5)
            listed.append(set(IN_FLIGHT.engines))
            progress.finish_all()

        def end():
            assert started.wait(5)
            assert handles[0].wait() == 1
            ended.set()
            listed.append(set(IN_FLIGHT.engines))
            progress.finish_all()

        one, other = (start, end) if starts_here else (end, start)
        threading.Thread(target=other, daemon=True).start()
        one()
        while len(listed) < 2:
            assert started.wait(5) and ended.wait(5)
        return listed

    found = []
    assert in_thread(lambda: found.extend(simulation.run(1, rank)))
    assert found == [[set(), set()]]
