"""Memory and clock of the CPU: working sets that come from memory, limits, threads."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mpisign.backend import threads
from mpisign.bench import _limits
from mpisign.bench.kernels.case import Case, Limit, MeasuredDevice
from mpisign.bench.measure import Call, elapsed
from mpisign.bench.record import cpu_model

_ALIGNED = 64
_LIMIT_AT_MOST = 512 << 20  # bytes: no machine is faster over more
_GOALS_FROM = 25_000_000  # coordinates; the goals are those of one thread and of memory


class Host(MeasuredDevice):
    """The CPU, one of the devices that a bench runs on."""

    #: Goals in seconds of one small call, and of a whole vote.
    call_goals = None, 10e-6
    #: Below this a call's own cost is measured, always in the caches, and no ratio.
    small = 10_000
    #: Seconds that one sample takes at least: short calls are repeated.
    sample = 2e-4
    #: How often a sample is repeated that another process disturbs.
    tries = 4

    def __init__(self, warm: bool) -> None:
        super().__init__(np, "cpu", warm, last_level_cache())

    def copies(self, nbytes: int, length: int) -> int:
        """One set for short calls, whose own cost is measured."""
        return 1 if length < self.small else super().copies(nbytes, length)

    def limit_calls(self, kind: str, nbytes: int, threads: int) -> dict[str, list[Call]]:
        """Plain loops that move ``nbytes`` (copy: half of them there, half back), in rings."""
        both = self.limit_bytes(kind, nbytes)
        each = both // 2 if kind == "copy" else both
        sets = self.copies(both, self.small)
        at = range(start := self._room(both * sets), start + both * sets, both)

        def ring(to: int | None, source: int | None, streaming: int) -> list[Call]:
            """Offsets in a set; None: no such side."""
            ends = [[0 if x is None else a + x for x in (to, source)] for a in at]
            more = each, streaming, threads
            return [functools.partial(_limits.move, t, s, *more) for t, s in ends]

        if kind == "read":
            return {"loads": ring(None, 0, 0), "loads at 4 places": ring(None, 0, 1)}
        if kind == "write":
            return {"stores": ring(0, None, 0), "streaming": ring(0, None, 1)}
        return {"memcpy": ring(each, 0, 0), "streaming": ring(each, 0, 1)}

    def limit_bytes(self, kind: str, nbytes: int) -> int:
        """Bytes that one of ``limit_calls`` moves."""
        sides = 2 if kind == "copy" else 1
        each = min(nbytes // sides, _LIMIT_AT_MOST) // _ALIGNED * _ALIGNED
        return sides * max(_ALIGNED, each)

    def _room(self, nbytes: int) -> int:
        if self._arena.nbytes < nbytes + _ALIGNED:
            # Not zeros: some memory stores and copies those several times faster.
            self._arena = np.empty(nbytes + _ALIGNED, dtype=np.uint8)
            self._arena[:] = 0x5A
        return int(self._arena.ctypes.data) + -int(self._arena.ctypes.data) % _ALIGNED

    #: Seconds that calls take, and seconds until they are launched.
    time = call_time = staticmethod(elapsed)

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
        """Returns the limit of a case on this device."""
        return case.limit

    def goal(self, case: Case, size: int, threads: int) -> float | None:
        """The goal: a share of the limit."""
        return case.goal if size >= _GOALS_FROM and threads == 1 and not self.warm else None

    def available(self) -> int:
        """Bytes of memory that are available without swapping."""
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


@functools.cache
def last_level_cache() -> int:
    """Bytes of the largest cache of the first core; 32 MiB where it is unknown."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        with contextlib.suppress(OSError, ValueError):
            text = path.read_text().strip()
            sizes.append(int(text[:-1]) * {"K": 1 << 10, "M": 1 << 20}[text[-1]])
    return max(sizes, default=32 << 20)
