"""Memory and clock of a GPU: CuPy's arrays, CUDA events, device copies as the limit."""

from __future__ import annotations

import contextlib
import ctypes
import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from mpisign.bench.kernels.case import Case, Limit, MeasuredDevice
from mpisign.bench.measure import Call, elapsed
from mpisign.experiments.errors import SettingsError

_GOAL = 0.90  # of the copy bandwidth, for all kernels that have one
_GOAL_FROM = 1 << 28  # coordinates
_LIMIT_AT_MOST = 4 << 30  # bytes
_DEVICE_TO_DEVICE = 3
_THREADS, _BLOCKS_EACH = 256, 16  # blocks for each multiprocessor

_COPY = r"""
extern "C" __global__ void copy16(uint4 *to, const uint4 *from, long long n)
{
    const long long step = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step)
        to[i] = from[i];
}
"""


class Cuda(MeasuredDevice):
    """The current CUDA device, one of the devices that a bench runs on."""

    small = 1_000_000
    #: Goals in seconds of Python for one small call, and for a whole vote.
    call_goals = 15e-6, None
    # Long enough for Python to be far ahead of the GPU: its launches are not what is measured.
    sample = 5e-3
    tries = 1

    def __init__(self, warm: bool) -> None:
        if not _driver():
            raise SettingsError("--device cuda: no NVIDIA GPU on this machine")
        try:
            import cupy
        except ImportError as error:
            raise SettingsError(
                f"--device cuda needs CuPy ({error}): scripts/setup --gpu, or pip install "
                "cupy-cuda13x (cupy-cuda12x with CUDA 12)"
            ) from error
        try:
            cupy.cuda.runtime.getDeviceCount()
            self._device = cupy.cuda.Device()
            self._device.use()
        except cupy.cuda.runtime.CUDARuntimeError as error:
            raise SettingsError(f"--device cuda: no CUDA device that works ({error})") from error
        super().__init__(cupy, "cuda", warm, int(self._device.attributes["L2CacheSize"]))
        self._copy = cupy.RawKernel(_COPY, "copy16")
        self._blocks = _BLOCKS_EACH * int(self._device.attributes["MultiProcessorCount"])

    def limit(self, case: Case) -> Limit:
        """Device copies bound every kernel."""
        return "copy"

    def limit_bytes(self, kind: str, nbytes: int) -> int:
        """Bytes that one of ``limit_calls`` moves, half of them there, half back."""
        return 32 * max(1, min(nbytes, _LIMIT_AT_MOST) // 32)

    def limit_calls(self, kind: str, nbytes: int, threads: int) -> dict[str, list[Call]]:
        """Device copies by the driver and by a kernel of 16-byte loads, each a ring of calls."""
        both = self.limit_bytes(kind, nbytes)
        half = both // 2
        sets = self.copies(both, nbytes)
        if self._arena.nbytes < both * sets:
            self._arena = None  # the old one goes first
            self._arena = self.xp.full(both * sets, 0x5A, dtype="uint8")
        parts = [self._arena[i * both : (i + 1) * both] for i in range(sets)]
        return {
            "driver": [partial(self._driver_copy, p[half:], p[:half]) for p in parts],
            "kernel": [
                partial(self._copy, (self._blocks,), (_THREADS,), (p[half:], p[:half], half // 16))
                for p in parts
            ],
        }

    def _driver_copy(self, to: Any, source: Any) -> None:
        stream = self.xp.cuda.get_current_stream().ptr
        self.xp.cuda.runtime.memcpyAsync(
            to.data.ptr, source.data.ptr, source.nbytes, _DEVICE_TO_DEVICE, stream
        )

    def time(self, calls: Sequence[Call]) -> float:
        """Seconds that ``calls`` take on the GPU, all of them, by events."""
        first, last = self.xp.cuda.Event(), self.xp.cuda.Event()
        first.record()
        for call in calls:
            call()
        last.record()
        last.synchronize()
        return 1e-3 * float(self.xp.cuda.get_elapsed_time(first, last))

    def call_time(self, calls: Sequence[Call]) -> float:
        """Seconds of Python until ``calls`` are launched; the GPU idles before and after."""
        calls = calls[:100]  # a queue that is full makes launches wait
        self._device.synchronize()
        seconds = elapsed(calls)
        self._device.synchronize()
        return seconds

    @contextlib.contextmanager
    def threads(self, count: int) -> Iterator[None]:
        """Does nothing: the number of threads is the CPU's."""
        yield

    def goal(self, case: Case, size: int, threads: int) -> float | None:
        """The goal: a share of the copy bandwidth."""
        return _GOAL if case.gpu_goal and size >= _GOAL_FROM and not self.warm else None

    def available(self) -> int:
        """Bytes of device memory that are available."""
        free: int = self._device.mem_info[0]
        pool = self.xp.get_default_memory_pool()
        return free + int(pool.free_bytes()) + self._stock.nbytes + int(self._arena.nbytes)

    def describe(self) -> dict[str, Any]:
        """The GPU, for the record."""
        runtime = self.xp.cuda.runtime
        name = runtime.getDeviceProperties(self._device.id)["name"]
        return {
            "gpu": name.decode() if isinstance(name, bytes) else str(name),
            "compute_capability": self._device.compute_capability,
            "memory": int(self._device.mem_info[1]),
            "l2_cache": int(self._device.attributes["L2CacheSize"]),
            "cuda": runtime.runtimeGetVersion(),
            "driver": runtime.driverGetVersion(),
        }


def _driver() -> bool:
    """Whether there is an NVIDIA driver."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return shutil.which("nvidia-smi") is not None
    return True
