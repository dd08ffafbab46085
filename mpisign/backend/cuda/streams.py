"""Streams and copies, for transports that move bytes to and from a device.

An array is a CuPy array or a torch CUDA tensor; its stream is the current one of its framework.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mpisign.backend import frameworks
from mpisign.backend.cuda import launch

#: cudaErrorNotReady, which cudaEventQuery returns while work is in flight.
_NOT_READY = 600


@dataclass(frozen=True)
class Stream:
    """One stream of one device, by its handle. Only ``synchronize`` waits for it."""

    device: int
    pointer: int
    #: Keeps the CUDA stream alive where it is ours.
    owner: Any = field(default=None, compare=False, repr=False)

    @property
    def _cuda(self) -> Any:
        return launch.cupy().cuda

    def copy_to_host(self, array: Any, host: np.ndarray[Any, Any]) -> None:
        """Queues a copy of ``host.nbytes``; ``host`` is pinned and in use until it has run."""
        runtime = self._cuda.runtime
        self._copy(
            frameworks.address(host), frameworks.address(array), host, runtime.memcpyDeviceToHost
        )

    def copy_to_device(self, host: np.ndarray[Any, Any], array: Any) -> None:
        """Queues a copy in the other direction."""
        runtime = self._cuda.runtime
        self._copy(
            frameworks.address(array), frameworks.address(host), host, runtime.memcpyHostToDevice
        )

    def _copy(self, to: int, source: int, host: np.ndarray[Any, Any], kind: int) -> None:
        if host.nbytes:
            with self._cuda.Device(self.device):
                self._cuda.runtime.memcpyAsync(to, source, host.nbytes, kind, self.pointer)

    def record(self) -> Event:
        """An event behind what is queued now."""
        return Event(self)

    def follow(self, other: Stream) -> None:
        """What is queued here from now on waits for what ``other`` has now; the host does not."""
        event = other.record()
        with chosen(self.device):
            self._cuda.runtime.streamWaitEvent(self.pointer, event.pointer)

    def synchronize(self) -> None:
        """Blocks until what is queued now has run. Other streams are not affected."""
        self.record().wait()


class Event:
    """A place in a stream. Waiting sleeps, since ranks may share a core."""

    def __init__(self, stream: Stream) -> None:
        cuda = stream._cuda
        self._runtime = cuda.runtime
        with cuda.Device(stream.device):
            self._event = cuda.Event(block=True, disable_timing=True)
            self._runtime.eventRecord(self._event.ptr, stream.pointer)

    @property
    def pointer(self) -> int:
        """CUDA's handle. A stream that waits for it keeps what it needs when this is gone."""
        return int(self._event.ptr)

    def done(self) -> bool:
        """True once the device has passed the event; CUDARuntimeError if the device failed."""
        # CuPy's Event.done is False for ever on a device that failed.
        status = self._runtime.eventQuery(self._event.ptr)
        if status not in (0, _NOT_READY):
            self._event.synchronize()  # raises
        return bool(status == 0)

    def wait(self) -> None:
        """Blocks until the device has passed the event."""
        self._event.synchronize()


def of(array: Any) -> Stream:
    """The current stream of the array's framework, on the array's device."""
    if frameworks.is_torch(array):
        import torch

        index = array.device.index
        return Stream(index, torch.cuda.current_stream(index).cuda_stream)
    device = array.device.id
    return Stream(device, launch.cupy().cuda.get_current_stream(device).ptr)


def own(device: int) -> Stream:
    """A new stream of the device, beside the default stream: neither waits for the other."""
    with chosen(device):
        made = launch.cupy().cuda.Stream(non_blocking=True)
    return Stream(device, made.ptr, made)


def on_device(array: Any) -> bool:
    """False for NumPy's arrays."""
    return not isinstance(array, np.ndarray)


def current() -> int:
    """The device that is current in this thread."""
    return int(launch.cupy().cuda.runtime.getDevice())


def chosen(device: int) -> Any:
    """A context in which ``device`` is current in this thread."""
    return launch.cupy().cuda.Device(device)


def empty(nbytes: int) -> Any:
    """Memory of the current device, a CuPy uint8 array."""
    return launch.cupy().empty(nbytes, dtype="uint8")


def pinned(nbytes: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Pinned host memory (nbytes,), freed with the array.

    Not from CuPy's pool, which rounds up to powers of two and never frees.
    """
    cuda = launch.cupy().cuda
    memory = cuda.PinnedMemoryPointer(cuda.PinnedMemory(nbytes), 0)
    return np.frombuffer(memory, dtype=np.uint8, count=nbytes)
