"""torch's streams, for collectives on device memory that the host does not wait for."""

from __future__ import annotations

import contextlib
import os
from typing import Any, Protocol

import torch

from mpisign.backend import frameworks


class Streams(Protocol):
    """The device that parts lie on. ``waits``: ``Work.wait`` lets a stream wait, not the host."""

    @property
    def waits(self) -> bool: ...

    def tensor(self, part: Any, /) -> torch.Tensor:
        """The part's memory as a torch tensor."""

    def current(self) -> torch.device:
        """The device for an exchange without parts."""

    def of(self, part: Any, /) -> Any:
        """The stream of work on the part."""

    def on(self, stream: Any, /) -> contextlib.AbstractContextManager[Any]:
        """A context in which ``stream`` is torch's current one, on its device."""

    def follow(self, stream: Any, /) -> None:
        """The current stream waits for what ``stream`` has now."""

    def enter(self, device: torch.device, /) -> None:
        """Makes ``device`` the current one of a thread that has used none."""

    def settle(self, part: Any, /) -> None:
        """Blocks until the device has done what is queued for the part."""


class CudaStreams:
    """CUDA: torch's current stream for its tensors, CuPy's for CuPy's arrays."""

    @property
    def waits(self) -> bool:
        """Whether ``MPISIGN_SYNC=0``. Else an exchange is over once the device has run it."""
        # A stream of the program that waited for an exchange could hold up a collective of the
        # program's (SyncBatchNorm) for which other ranks wait before they start that exchange:
        # tests/test_nccl_order.py shows it.
        return os.environ.get("MPISIGN_SYNC") == "0"

    def tensor(self, part: Any) -> torch.Tensor:
        return part if frameworks.is_torch(part) else torch.from_dlpack(part)

    def current(self) -> torch.device:
        return torch.device("cuda", torch.cuda.current_device())

    def of(self, part: Any) -> Any:
        if frameworks.is_torch(part):
            return torch.cuda.current_stream(part.device)
        from mpisign.backend.cuda import streams

        found = streams.of(part)
        if not found.pointer:
            return torch.cuda.default_stream(found.device)
        return torch.cuda.ExternalStream(found.pointer, device=found.device)

    def on(self, stream: Any) -> contextlib.AbstractContextManager[Any]:
        # A stream's context alone would end by choosing the device before: that makes a context
        # of CUDA's there, half a GB, in a thread that began on device 0. A device's does not.
        contexts = contextlib.ExitStack()
        contexts.enter_context(torch.cuda.device(stream.device))
        contexts.enter_context(torch.cuda.stream(stream))
        return contexts

    def follow(self, stream: Any) -> None:
        current = torch.cuda.current_stream(stream.device)
        if current != stream:
            current.wait_stream(stream)

    def enter(self, device: torch.device) -> None:
        torch.cuda.set_device(device)

    def settle(self, part: Any) -> None:
        self.of(part).synchronize()
