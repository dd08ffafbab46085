"""How much memory a step needs beyond parameters, gradients and what a compressor says it keeps."""

from __future__ import annotations

import ctypes
import gc
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpisign.bench.errors import BenchError
from mpisign.bench.table import coordinates
from mpisign.bench.training import network
from mpisign.bench.training.build import Training
from mpisign.bench.training.names import NONE, Named
from mpisign.bench.training.results import MemoryRow
from mpisign.bench.training.settings import Settings
from mpisign.bench.training.trainer import Feed, Trainer

_STATUS, _FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h
_MAPPED = 128 << 10  # bytes from which memory is the kernel's again as soon as it is freed
_STEPS = 3
_SMALL = 10_000  # parameters


@dataclass(frozen=True)
class _Peak:
    """Bytes of one rank. ``resident``: during a step, beyond what there was before the way."""

    traced: int
    resident: int
    state: int
    bucket: int


def measure(
    trainer: Trainer,
    ways: Sequence[tuple[Named, float]],
    begin: Callable[[str], None],
    end: Callable[[], None],
) -> list[MemoryRow]:
    """A row a way, the step without communication first, whose memory does not count.

    Each way trains small models before: what is loaded and made once is not counted.
    """
    _give_back_at_once()
    found: dict[str, _Peak] = {}
    told: list[tuple[Named, float, str, bool | None]] = []
    for way, lr in sorted(ways, key=lambda pair: pair[0].name != NONE):
        error, same = "", None
        for parameters, counts in (
            (_SMALL, False),
            (_SMALL, False),
            (trainer.settings.parameters, True),
        ):
            begin(f"{way.name}, {coordinates(parameters)} parameters")
            try:
                if not error:
                    found[way.name], same = _of(trainer, way, lr, parameters, counts)
            except BenchError as wrong:
                error = str(wrong)
            end()
        told.append((way, lr, error, same))
    return [_row(trainer.settings, found, *row) for row in told]


def _row(
    settings: Settings,
    found: dict[str, _Peak],
    way: Named,
    lr: float,
    error: str,
    same: bool | None,
) -> MemoryRow:
    if error:
        return MemoryRow(way.name, way.ours, lr, error)
    own, base = found[way.name], found[NONE]
    d = network.count(network.width(settings.parameters, settings.layers), settings.layers)
    return MemoryRow(
        way.name,
        way.ours,
        lr,
        "",
        same,
        own.state,
        own.traced - base.traced,
        (own.resident - own.state) - (base.resident - base.state),
        -(-d // 8),
        own.bucket or None,
    )


def _of(
    trainer: Trainer, way: Named, lr: float, parameters: int, counts: bool
) -> tuple[_Peak, bool | None]:
    _collect()
    before = _status("VmRSS")
    if counts:  # from here on: what the way keeps from step to step is in it
        tracemalloc.start()
    try:
        with trainer.training(way, lr, 0, parameters) as training:
            feed = trainer.feed(0)
            traced, resident = _peaks(trainer, training, feed, way.name)
            same = trainer.identical(way, training)
            own = [traced, resident - before, training.state(), training.bucket]
    finally:
        tracemalloc.stop()
    most = trainer.control.gather(np.array(own, dtype=np.int64)).max(axis=0)
    return _Peak(*(int(v) for v in most)), same


def _peaks(trainer: Trainer, training: Training, feed: Feed, name: str) -> tuple[int, int]:
    """Bytes traced, and resident, at the worst moment of a step like any other."""
    trainer.steps(training, feed, trainer.settings.warm_up, f"{name}, first steps", None)
    _collect()
    tracemalloc.reset_peak()
    _FORGET.write_text("5")  # the peak so far
    trainer.steps(training, feed, _STEPS, f"{name}, steps", None)
    return tracemalloc.get_traced_memory()[1], _status("VmHWM")


def _status(name: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise BenchError(f"{_STATUS} tells no {name}")


def _collect() -> None:
    gc.collect()
    _libc().malloc_trim(0)


def _give_back_at_once() -> None:
    """Without it glibc keeps what was freed, and every way would look as large as the largest."""
    if not _libc().mallopt(_MMAP_THRESHOLD, _MAPPED):
        raise BenchError("--memory: mallopt failed")


def _libc() -> ctypes.CDLL:
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.malloc_trim  # noqa: B018
    except (OSError, AttributeError) as error:
        raise BenchError(f"--memory needs Linux with glibc: {error}") from error
    return libc
