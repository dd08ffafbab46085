"""What ``mpisign bench training --memory`` measures: memory of a step beyond what it must keep."""

from __future__ import annotations

import ctypes
import gc
import tracemalloc
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpisign.bench.errors import BenchError
from mpisign.bench.progress import Begin
from mpisign.bench.table import coordinates
from mpisign.bench.training import network
from mpisign.bench.training.build import Training
from mpisign.bench.training.modes import Plan
from mpisign.bench.training.names import NONE, TrainingMethod
from mpisign.bench.training.results import MemoryRow
from mpisign.bench.training.trainer import Feed, Trainer

_STATUS, _FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h
_MAPPED = 128 << 10  # bytes from which freed memory is returned to the kernel at once
_STEPS = 3
_SMALL = 10_000  # parameters


@dataclass(frozen=True)
class _Peak:
    """Bytes of one rank. ``resident``: during a step, beyond the memory before the method."""

    traced: int
    resident: int
    state: int
    bucket: int


def measure(trainer: Trainer, plan: Plan, begin: Begin) -> list[MemoryRow]:
    """A row a method, the step without communication first, whose memory does not count.

    Each method trains small models before: what is loaded and made once is not counted.
    """
    _give_back_at_once()
    settings, rows = trainer.settings, []
    d = network.count(network.width(settings.parameters, settings.layers), settings.layers)
    base: _Peak | None = None
    for method, lr in sorted(plan, key=lambda pair: pair[0].name != NONE):
        error, same, own = "", None, None
        for number, parameters in enumerate((_SMALL, _SMALL, settings.parameters)):
            begin(f"{method.name}, {coordinates(parameters)} parameters")
            try:
                if not error:
                    own, same = _of(trainer, method, lr, parameters, counts=number == 2)
            except BenchError as wrong:
                error = str(wrong)
        if error or own is None:
            rows.append(MemoryRow(method.name, method.ours, lr, error))
            continue
        base = base or own
        traced = own.traced - base.traced
        resident = (own.resident - own.state) - (base.resident - base.state)
        rows.append(
            MemoryRow(
                method.name, method.ours, lr, "", same, own.state, traced, resident, -(-d // 8),
                own.bucket or None,
            )
        )  # fmt: skip
    return rows


def _of(
    trainer: Trainer, method: TrainingMethod, lr: float, parameters: int, counts: bool
) -> tuple[_Peak, bool | None]:
    _collect()
    before = _status("VmRSS")
    if counts:  # from here on, so that what the method keeps from step to step is counted
        tracemalloc.start()
    try:
        with trainer.training(method, lr, 0, parameters) as training:
            traced, resident = _peaks(trainer, training, trainer.feed(0), method.name)
            same = trainer.identical(method, training)
            own = [traced, resident - before, training.state(), training.bucket]
    finally:
        tracemalloc.stop()
    most = trainer.control.gather(np.array(own, dtype=np.int64)).max(axis=0)
    return _Peak(*(int(v) for v in most)), same


def _peaks(trainer: Trainer, training: Training, feed: Feed, name: str) -> tuple[int, int]:
    """Bytes traced, and resident, at the worst moment of a step like any other."""
    trainer.steps(training, feed, trainer.settings.warm_up, f"{name}, first steps")
    _collect()
    tracemalloc.reset_peak()
    _FORGET.write_text("5")  # the peak so far
    trainer.steps(training, feed, _STEPS, f"{name}, steps")
    return tracemalloc.get_traced_memory()[1], _status("VmHWM")


def _status(name: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise BenchError(f"{_STATUS} has no {name}")


def _collect() -> None:
    gc.collect()
    _libc().malloc_trim(0)


def _give_back_at_once() -> None:
    """Otherwise glibc keeps freed memory, and every method would look as large as the largest."""
    if not _libc().mallopt(_MMAP_THRESHOLD, _MAPPED):
        raise BenchError("--memory: mallopt failed")


def _libc() -> ctypes.CDLL:
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.malloc_trim  # noqa: B018
    except (OSError, AttributeError) as error:
        raise BenchError(f"--memory needs Linux with glibc: {error}") from error
    return libc
