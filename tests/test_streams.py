"""mpisign.backend.cuda.streams: which calls of CUDA's it makes, with which addresses.

CUDA's runtime is played by memmove on machines without a device; names are compared with the real
CuPy where it is installed, which it can be without a device.
"""

from __future__ import annotations

import contextlib
import ctypes
from types import SimpleNamespace

import numpy as np
import pytest

from mpisign.backend.cuda import launch, streams


class Raw:
    """As much of a CuPy array as is looked at."""

    def __init__(self, values, device=0):
        self.values, self.nbytes = values, values.nbytes
        self.data = SimpleNamespace(ptr=values.ctypes.data)
        self.device = SimpleNamespace(id=device)


class Runtime:
    memcpyHostToDevice, memcpyDeviceToHost = 1, 2

    def __init__(self):
        self.calls, self.device, self.status = [], 0, {}

    def memcpyAsync(self, dst, src, size, kind, stream):
        self.calls.append((kind, size, stream, self.device))
        ctypes.memmove(dst, src, size)

    def eventRecord(self, event, stream):
        self.calls.append(("record", stream, self.device))

    def streamWaitEvent(self, stream, event):
        self.calls.append(("wait", stream, event, self.device))

    def eventQuery(self, event):
        return self.status.get(event, 0)

    def getDevice(self):
        return self.device


@pytest.fixture
def runtime(monkeypatch):
    runtime = Runtime()

    @contextlib.contextmanager
    def device(index):
        before, runtime.device = runtime.device, index
        yield
        runtime.device = before

    class Event:
        def __init__(self, block=False, disable_timing=False, interprocess=False):
            self.ptr = 77

        def synchronize(self):
            if runtime.status.get(self.ptr, 0) not in (0, 600):
                raise RuntimeError("cudaErrorLaunchFailure")
            runtime.calls.append("synchronize")

    def stream(**options):
        return SimpleNamespace(ptr=30 + runtime.device, options=options)

    current = {0: SimpleNamespace(ptr=5), 1: SimpleNamespace(ptr=6)}
    cuda = SimpleNamespace(
        runtime=runtime,
        Device=device,
        Event=Event,
        Stream=stream,
        get_current_stream=lambda i=-1: current[i],
    )
    monkeypatch.setattr(launch, "cupy", lambda: SimpleNamespace(cuda=cuda))
    return runtime


def test_copies_go_the_right_way_on_the_stream_of_the_array(runtime):
    array, host = Raw(np.arange(100, dtype=np.uint8), 1), np.zeros(100, np.uint8)
    stream = streams.of(array)
    assert (stream.device, stream.pointer) == (1, 6)
    stream.copy_to_host(array, host)
    assert (host == np.arange(100)).all()
    host[:] = 9
    stream.copy_to_device(host[:40], array)
    assert (array.values[:40] == 9).all() and (array.values[40:] == np.arange(40, 100)).all()
    assert runtime.calls == [(2, 100, 6, 1), (1, 40, 6, 1)] and runtime.device == 0
    stream.copy_to_host(Raw(np.zeros(0, np.uint8)), np.zeros(0, np.uint8))
    assert len(runtime.calls) == 2


def test_streams_are_equal_by_device_and_handle(runtime):
    a, b = Raw(np.zeros(1, np.uint8)), Raw(np.zeros(1, np.uint8))
    assert streams.of(a) == streams.of(b) and len({streams.of(a), streams.of(b)}) == 1
    assert streams.of(a) != streams.of(Raw(np.zeros(1, np.uint8), 1))


def test_events(runtime):
    event = streams.Stream(1, 6).record()
    assert runtime.calls == [("record", 6, 1)]
    runtime.status[77] = 600
    assert event.done() is False
    runtime.status[77] = 0
    assert event.done() is True
    event.wait()
    assert runtime.calls[-1] == "synchronize"
    # CuPy's own Event.done would be False for ever, and whoever polls it would wait for ever.
    runtime.status[77] = 719
    with pytest.raises(RuntimeError, match="cudaErrorLaunchFailure"):
        event.done()


def test_a_stream_of_our_own_follows_another_one(runtime):
    own = streams.own(1)
    assert (own.device, own.pointer) == (1, 31) and own.owner.options == {"non_blocking": True}
    own.follow(streams.Stream(1, 6))
    assert runtime.calls == [("record", 6, 1), ("wait", 31, 77, 1)] and runtime.device == 0


def test_a_torch_tensor_is_on_torchs_stream(runtime, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(
        torch.cuda, "current_stream", lambda index: SimpleNamespace(cuda_stream=40 + index)
    )
    monkeypatch.setattr(streams.frameworks, "is_torch", lambda x: True)
    tensor = SimpleNamespace(device=SimpleNamespace(index=2))
    assert streams.of(tensor) == streams.Stream(2, 42)


def test_names_and_arguments_are_those_of_cupy():
    cuda = pytest.importorskip("cupy").cuda
    real = cuda.runtime.memcpyAsync.__doc__
    assert [
        part.split()[-1] for part in real[real.index("(") + 1 : real.index(")")].split(",")
    ] == [*("dst", "src", "size", "kind", "stream")]
    assert (cuda.runtime.memcpyHostToDevice, cuda.runtime.memcpyDeviceToHost) == (1, 2)
    assert "eventRecord(intptr_t event, intptr_t stream)" in cuda.runtime.eventRecord.__doc__
    assert "streamWaitEvent(intptr_t stream, intptr_t event" in cuda.runtime.streamWaitEvent.__doc__
    assert "eventQuery(intptr_t event)" in cuda.runtime.eventQuery.__doc__
    assert "block=False, disable_timing=False" in cuda.Event.__init__.__doc__
    assert cuda.Device and cuda.get_current_stream and cuda.runtime.getDevice

    # What streams.pinned makes of pinned memory, with memory that is not.
    class Memory:
        def __init__(self, size):
            self.size, self.array = size, np.zeros(size, np.uint8)
            self.ptr = self.array.ctypes.data

    memory = Memory(4096)
    array = np.frombuffer(cuda.PinnedMemoryPointer(memory, 0), dtype=np.uint8, count=4000)
    array[7] = 3
    assert memory.array[7] == 3 and array.ctypes.data == memory.ptr and array.size == 4000
