"""Starts kernels on a device: the one module that needs CuPy.

No method of a launcher waits for the device. Tests replace it (tests/cuda_on_cpu/).
"""

from __future__ import annotations

import functools
import os
import sys
import time
from typing import Any, Protocol

from mpisign.backend.cuda import compile as sources
from mpisign.backend.cuda.once_per_node import one_at_a_time

_NOTED = 0.05  # seconds of compiling that MPISIGN_DEBUG=1 prints


class Launcher(Protocol):
    """A device and a stream of it."""

    #: (device, stream), the owner of device memory that is kept between calls.
    key: tuple[int, int]

    def launch(
        self, file: str, name: str, grid: int, block: int, shared_bytes: int, args: tuple[Any, ...]
    ) -> None:
        """Queue a kernel. ``args``: int (8 bytes), np.float32, float (8 bytes), a NumPy structure
        of one item (by value)."""
        ...

    def zeros(self, count: int) -> Any:
        """A device array of int64 zeros, of the framework that owns the stream."""
        ...

    def scratch(self, nbytes: int) -> tuple[Any, int]:
        """(owner, address) of device memory, for work queued now."""
        ...


def cupy() -> Any:
    """The module cupy; an ImportError names the package to install."""
    try:
        import cupy
    except ImportError as e:
        raise ImportError(
            "arrays on a CUDA device need CuPy, which compiles mpisign's kernels: "
            "pip install cupy-cuda13x (or cupy-cuda12x: whichever CUDA the driver and torch have)"
        ) from e
    return cupy


@functools.cache
def _module(file: str) -> Any:
    code = sources.source(sources.folder() / f"{file}.cu")
    return cupy().RawModule(code=code, options=sources.OPTIONS)


@functools.cache
def _function(file: str, name: str) -> Any:
    # A RawKernel loads itself into each device that it is launched on.
    start = time.perf_counter()
    with one_at_a_time(file):
        function = _module(file).get_function(name)  # compiles, or reads CuPy's cache on the disk
    seconds = time.perf_counter() - start
    if seconds > _NOTED and os.environ.get("MPISIGN_DEBUG") == "1":
        text = f"mpisign: {seconds:.2f} s to compile or load {name} of {file}.cu"
        print(text, file=sys.stderr, flush=True)
    return function


class _Handle:
    """Another framework's stream, in the protocol of CUDA's Python libraries."""

    def __init__(self, stream: int) -> None:
        self._stream = stream

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._stream


def _external(stream: int, device: int) -> Any:
    streams = cupy().cuda
    if hasattr(streams.Stream, "from_external"):  # CuPy 14
        return streams.Stream.from_external(_Handle(stream))
    return streams.ExternalStream(stream, device)


class CupyLauncher:
    """Launches on a CuPy stream, with CuPy's memory."""

    def __init__(self, device: int, stream: int) -> None:
        cp = cupy()
        self.key = (device, stream)
        self._device = cp.cuda.Device(device)
        self._stream = _external(stream, device)

    def launch(
        self, file: str, name: str, grid: int, block: int, shared_bytes: int, args: tuple[Any, ...]
    ) -> None:
        with self._device:
            kernel = _function(file, name)
            kernel((grid,), (block,), args, shared_mem=shared_bytes, stream=self._stream)

    def zeros(self, count: int) -> Any:
        with self._device, self._stream:
            return cupy().zeros(count, dtype="int64")

    def scratch(self, nbytes: int) -> tuple[Any, int]:
        with self._device, self._stream:
            memory = cupy().empty(nbytes, dtype="uint8")
        return memory, memory.data.ptr


class TorchLauncher(CupyLauncher):
    """Launches on a torch stream, with torch's memory, which torch tracks by stream."""

    def __init__(self, device: int, stream: int) -> None:
        super().__init__(device, stream)
        import torch

        self._torch = torch
        self._torch_device = torch.device("cuda", device)

    def zeros(self, count: int) -> Any:
        return self._torch.zeros(count, dtype=self._torch.int64, device=self._torch_device)

    def scratch(self, nbytes: int) -> tuple[Any, int]:
        memory = self._torch.empty(nbytes, dtype=self._torch.uint8, device=self._torch_device)
        return memory, memory.data_ptr()


@functools.lru_cache(maxsize=256)
def launcher(device: int, stream: int, is_torch: bool) -> Launcher:
    """The launcher of a device's stream, given by its CUDA handle."""
    return (TorchLauncher if is_torch else CupyLauncher)(device, stream)
