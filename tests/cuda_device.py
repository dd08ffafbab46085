"""A real CUDA device in the place of the fibres of tests/cuda_on_cpu/: same tests, same buffers."""

from __future__ import annotations

import functools

import numpy as np

from mpisign.backend.cuda import launch

_MARGIN = 256
_UNTOUCHED = 0xA5


@functools.cache
def missing() -> str | None:
    """Why no CUDA device can be used from here; None if one can."""
    try:
        import cupy
    except ImportError:
        return "no CUDA device can be used: CuPy is not installed"
    try:
        cupy.zeros(1).item()
    except Exception as e:
        return f"no CUDA device can be used: {type(e).__name__}: {e}"
    return None


class DeviceBuffer:
    """Device memory between two margins that must stay as they are."""

    def __init__(self, content: np.ndarray, odd: int = 0) -> None:
        import cupy

        self._content, self._first = content, _MARGIN + odd
        self._memory = cupy.full(content.nbytes + 2 * _MARGIN + odd, _UNTOUCHED, dtype=cupy.uint8)
        raw = np.frombuffer(content.tobytes(), dtype=np.uint8)
        self._memory[self._first : self._first + content.nbytes] = cupy.asarray(raw)
        self.address = self._memory.data.ptr + self._first

    def data_ptr(self) -> int:
        return self.address

    @property
    def array(self) -> np.ndarray:
        """What is there now."""
        raw = self._memory.get()[self._first : self._first + self._content.nbytes]
        return np.frombuffer(raw.tobytes(), self._content.dtype).reshape(self._content.shape)

    def check_margins(self) -> None:
        raw = self._memory.get()
        outside = np.delete(raw, np.s_[self._first : self._first + self._content.nbytes])
        assert (outside == _UNTOUCHED).all(), "written outside a buffer"


class DeviceLauncher(launch.CupyLauncher):
    """Launches on the default stream of device 0, with the methods that the tests' Gpu needs."""

    def __init__(self) -> None:
        super().__init__(0, 0)
        self._buffers: list[DeviceBuffer] = []
        self.launched: list[str] = []

    def launch(self, file, name, grid, block, shared_bytes, args) -> None:
        self.launched.append(name)
        super().launch(file, name, grid, block, shared_bytes, args)

    def buffer(self, content: np.ndarray, odd: int = 0) -> DeviceBuffer:
        made = DeviceBuffer(content, odd)
        self._buffers.append(made)
        return made

    def zeros(self, count: int) -> DeviceBuffer:
        return self.buffer(np.zeros(count, dtype=np.int64))

    def forget(self) -> None:
        for made in self._buffers:
            made.check_margins()
        self._buffers.clear()
