"""Memory and clock of the CPU: working sets that come from memory, limits, threads."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mpisign.backend import threads
from mpisign.bench import _limits, calls
from mpisign.bench.case import Call, Case, Limit
from mpisign.bench.stock import Stock

_ALIGNED = 64
_LIMIT_AT_MOST = 512 << 20  # bytes: no machine is faster over more
_FRESH = 4  # caches that lie between two uses of the same bytes
_GOALS_FROM = 25_000_000  # coordinates; the goals are those of one thread and of memory
_SMALL_GOAL = 10e-6  # seconds


class Host:
    """The CPU, as one of the devices that a benchmark runs on."""

    name = "cpu"
    xp = np
    #: Below this a call's own cost is measured, always in the caches, and no ratio.
    small = 10_000
    #: Seconds that one sample takes at least: short calls are repeated.
    sample = 2e-4
    #: How often a sample is tried that another process disturbs.
    tries = 4

    def __init__(self, warm: bool) -> None:
        self.warm = warm
        self.fresh = 0 if warm else _FRESH * last_level_cache()
        self._stock = Stock(np, "cpu")
        self._arena = np.empty(0, dtype=np.uint8)

    def stock(self, nbytes: int) -> Stock:
        """Memory for ``nbytes`` of arguments; what was handed out before is used again."""
        self._stock.reserve(nbytes)
        return self._stock

    def copies(self, nbytes: int, length: int) -> int:
        """How many sets of ``nbytes`` of arguments the calls take turns in."""
        if self.warm or length < self.small:
            return 1
        return min(8192, 1 + self.fresh // max(1, nbytes))

    def limit_calls(self, kind: str, nbytes: int, threads: int) -> dict[str, list[Call]]:
        """Ways to move ``nbytes`` (copy: half of them there, half back), each a ring of calls."""
        each = nbytes // 2 if kind == "copy" else nbytes
        each = max(_ALIGNED, min(each, _LIMIT_AT_MOST) // _ALIGNED * _ALIGNED)
        both = 2 * each if kind == "copy" else each
        sets = self.copies(both, self.small)
        start = self._room(both * sets)
        at = [start + i * both for i in range(sets)]

        def ring(to: int | None, source: int | None, streaming: int) -> list[Call]:
            return [
                functools.partial(
                    _limits.move,
                    0 if to is None else a + to,
                    0 if source is None else a + source,
                    each,
                    streaming,
                    threads,
                )
                for a in at
            ]

        if kind == "read":
            return {"loads": ring(None, 0, 0)}
        if kind == "write":
            return {"stores": ring(0, None, 0), "streaming": ring(0, None, 1)}
        return {"memcpy": ring(each, 0, 0), "streaming": ring(each, 0, 1)}

    def limit_bytes(self, kind: str, nbytes: int) -> int:
        """What one of ``limit_calls`` moves."""
        each = nbytes // 2 if kind == "copy" else nbytes
        each = max(_ALIGNED, min(each, _LIMIT_AT_MOST) // _ALIGNED * _ALIGNED)
        return 2 * each if kind == "copy" else each

    def _room(self, nbytes: int) -> int:
        if self._arena.nbytes < nbytes + _ALIGNED:
            # Not zeros: some memory stores and copies those several times faster.
            self._arena = np.empty(nbytes + _ALIGNED, dtype=np.uint8)
            self._arena[:] = 0x5A
        return int(self._arena.ctypes.data) + -int(self._arena.ctypes.data) % _ALIGNED

    def time(self, calls: Sequence[Call]) -> float:
        """Seconds that ``calls`` take, all of them."""
        start = time.perf_counter()
        for call in calls:
            call()
        return time.perf_counter() - start

    call_time = time

    @contextlib.contextmanager
    def threads(self, count: int) -> Iterator[None]:
        """Kernels, and torch if it is there, use ``count`` threads inside."""
        before = os.environ.get("MPISIGN_NUM_THREADS")
        torch: Any = sys.modules.get("torch")
        try:
            os.environ["MPISIGN_NUM_THREADS"] = str(count)
            threads.of_environment.cache_clear()
            if torch is not None and torch.get_num_threads() != count:
                torch.set_num_threads(count)
            yield
        finally:
            if before is None:
                del os.environ["MPISIGN_NUM_THREADS"]
            else:
                os.environ["MPISIGN_NUM_THREADS"] = before
            threads.of_environment.cache_clear()

    def limit(self, case: Case) -> Limit:
        """What bounds this case here."""
        return case.limit

    def goal(self, case: Case, size: int, threads: int) -> float | None:
        """The share of the limit that the project asks for here."""
        return case.goal if size >= _GOALS_FROM and threads == 1 and not self.warm else None

    def small_calls(self, size: int) -> list[calls.SmallCase]:
        """Calls whose own cost is measured; the goal is for a whole vote."""
        return calls.small_calls(np, self.stock(64 * size + (1 << 16)), size, None, _SMALL_GOAL)

    def available(self) -> int:
        """Bytes of memory that can be had without swapping."""
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                held = self._stock.nbytes + self._arena.nbytes
                return 1024 * int(line.split()[1]) + held
        return 1 << 62

    def describe(self) -> dict[str, Any]:
        """The processor, for the record."""
        return {
            "cpu": cpu_model(),
            "cores": len(os.sched_getaffinity(0)),
            "last_level_cache": last_level_cache(),
        }


def cpu_model() -> str:
    """The processor's name as the kernel tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    import platform

    return platform.processor() or platform.machine()


@functools.cache
def last_level_cache() -> int:
    """Bytes of the largest cache of the first core; 32 MiB if nobody tells."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        with contextlib.suppress(OSError, ValueError):
            text = path.read_text().strip()
            sizes.append(int(text[:-1]) * {"K": 1 << 10, "M": 1 << 20}[text[-1]])
    return max(sizes, default=32 << 20)
