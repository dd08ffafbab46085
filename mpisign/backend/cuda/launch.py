"""What starts kernels on a device: the one module that needs CuPy.

A launcher has four methods, so that tests can put another in its place (tests/cuda_on_cpu/):
``launch``, ``zeros``, ``scratch`` and ``key``. None of them waits for the device.
"""

from __future__ import annotations

import functools
from typing import Any, Protocol

from mpisign.backend.cuda import compile as sources


class Launcher(Protocol):
    """A device and a stream of it."""

    #: What device memory that is kept between calls belongs to: (device, stream).
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
        """Device memory (its owner, its address) that may go once what is queued now has run."""
        ...


def cupy() -> Any:
    """The module cupy; ImportError that says what to install."""
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
    return _module(file).get_function(name)


class _Handle:
    """A stream that another framework has made, by the protocol of CUDA's Python libraries."""

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
    """Launches on a CuPy stream, CuPy's memory behind it."""

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
    """Launches on a torch stream; memory comes from torch, which knows what the stream uses."""

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
    """The launcher of a device's stream (its handle, as CUDA has it)."""
    return (TorchLauncher if is_torch else CupyLauncher)(device, stream)
