"""What ``mpisign bench training`` measures: steps, time to an accuracy, learning rates, memory."""

from __future__ import annotations

import ctypes
import gc
import re
import tracemalloc
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np

from mpisign.bench.progress import Attempts, Begin
from mpisign.bench.table import coordinates
from mpisign.bench.training import names, network
from mpisign.bench.training.names import NONE, TrainingMethod
from mpisign.bench.training.results import (
    AccuracyRow,
    MemoryRow,
    Point,
    Run,
    StepRow,
    beside,
    less_than_base,
)
from mpisign.bench.training.trainer import Block, Trainer
from mpisign.experiments.errors import SettingsError

#: Methods and the learning rates at the start of their schedules.
Plan = Sequence[tuple[TrainingMethod, float]]

_WARM_UP = 2  # steps
_CLOSE = 0.005  # final accuracies as close as the goal allows
_STATUS, _FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h
_MAPPED = 128 << 10  # bytes from which freed memory is returned to the kernel at once
_STEPS = 3  # of --memory
_SMALL = 10_000  # parameters


def step(trainer: Trainer, plan: Plan, begin: Begin) -> list[StepRow]:
    """Seconds per step: all methods in turns, in rounds of which the first does not count."""
    attempt, repeat = Attempts(begin), trainer.settings.repeat
    found: dict[str, list[tuple[Block, bool | None]]] = {method.name: [] for method, _ in plan}
    for number in range(repeat + 1):
        # Another goes first each time: no method always follows the same one.
        first = number % len(plan)
        for method, lr in (*plan[first:], *plan[:first]):
            what = f"round {number} of {repeat}, {method.name}"
            if got := attempt(method.name, what, _round, trainer, method, lr):
                found[method.name].append(got)
    rows = []
    for m, lr in plan:
        error = attempt.errors.get(m.name, "")
        measured = [] if error else found[m.name]
        same = _all_same(identical for _, identical in measured)
        rows.append(StepRow(m.name, m.ours, lr, error, same, [block for block, _ in measured[1:]]))
    return beside(rows)


def _round(trainer: Trainer, method: TrainingMethod, lr: float) -> tuple[Block, bool | None]:
    settings, name = trainer.settings, method.name
    with trainer.training(method, lr, seed=0) as training:
        feed = trainer.feed(seed=0)
        trainer.steps(training, feed, settings.warm_up, f"{name}, first steps")
        block = trainer.steps(training, feed, settings.steps, f"{name}, steps")
        return block, trainer.identical(method, training)


def _all_same(values: Iterable[bool | None]) -> bool | None:
    known = [value for value in values if value is not None]
    return all(known) if known else None


def accuracy(trainer: Trainer, plan: Plan, begin: Begin) -> list[AccuracyRow]:
    """Each method to the end of its schedule with every seed, in turns with the others."""
    attempt, wanted = Attempts(begin), trainer.settings.accuracy
    runs: dict[str, list[Run]] = {method.name: [] for method, _ in plan}
    for method, lr in plan:
        what = f"{method.name}, first steps"
        attempt(method.name, what, _warm_up, trainer, method, lr, what)
    for seed in range(trainer.settings.seeds):
        for method, lr in plan:
            name = method.name
            if run := attempt(name, f"{name}, seed {seed}", _run, trainer, method, lr, seed):
                runs[name].append(run)
    rows = []
    for m, lr in plan:
        error = attempt.errors.get(m.name, "")
        found = [] if error else runs[m.name]
        same = _all_same(run.identical for run in found)
        rows.append(AccuracyRow(m.name, m.ours, lr, error, same, wanted, found))
    return less_than_base(rows)


def _warm_up(trainer: Trainer, method: TrainingMethod, lr: float, what: str) -> None:
    with trainer.training(method, lr, seed=0) as training:
        trainer.steps(training, trainer.feed(0), _WARM_UP, what)


def _run(trainer: Trainer, method: TrainingMethod, lr: float, seed: int) -> Run:
    total, every = trainer.settings.steps, trainer.settings.every
    with trainer.training(method, lr, seed) as training:
        feed, seconds, crossed = trainer.feed(seed), 0.0, 0.0
        curve: list[Point] = []
        counted: float | None = None
        for at in range(0, total, every):
            count = min(every, total - at)
            block = trainer.steps(training, feed, count, f"{method.name}, steps", (at, total))
            seconds += count * block.seconds
            if block.counted is not None:
                crossed += count * block.counted
                counted = crossed / (at + count)
            curve.append(Point(at + count, seconds, trainer.accuracy(training)))
        return Run(seed, curve, counted, trainer.identical(method, training))


def tune(trainer: Trainer, plan: Plan, begin: Begin) -> list[AccuracyRow]:
    """A row for each method and rate, the method's best first."""
    found = []
    for method, around in plan:
        rows = []
        for lr in names.grid(around):
            rows += accuracy(trainer, [(method, lr)], begin)
        found += sorted(rows, key=lambda row: _worth(row, rows))
    return found


def _worth(row: AccuracyRow, rows: Sequence[AccuracyRow]) -> tuple[bool, float, float]:
    """Fewest steps to the accuracy, among those that end as well as any."""
    if not row.runs:
        return True, float("inf"), 0.0
    best = max(fmean(r.final) for r in rows if r.runs)
    steps = row.steps if row.steps is not None else float("inf")
    return fmean(row.final) < best - _CLOSE, steps, -fmean(row.final)


def memory(trainer: Trainer, plan: Plan, begin: Begin) -> list[MemoryRow]:
    """A row a method, the step without communication first, whose memory does not count."""
    # Otherwise glibc keeps freed memory, and every method would look as large as the largest.
    if not _libc().mallopt(_MMAP_THRESHOLD, _MAPPED):
        raise SettingsError("--memory: mallopt failed")
    settings, rows, attempt, base = trainer.settings, [], Attempts(begin), None
    d = network.count(network.width(settings.parameters, settings.layers), settings.layers)
    for method, lr in sorted(plan, key=lambda pair: pair[0].name != NONE):
        own = None
        for number, parameters in enumerate((_SMALL, _SMALL, settings.parameters)):
            what = f"{method.name}, {coordinates(parameters)} parameters"
            own = attempt(method.name, what, _peaks, trainer, method, lr, parameters, number == 2)
        if own is None:
            rows.append(MemoryRow(method.name, method.ours, lr, attempt.errors[method.name]))
            continue
        (traced, resident, state, bucket), same = own
        base = base or (traced, resident)
        figures = state, traced - base[0], resident - base[1], -(-d // 8), bucket or None
        rows.append(MemoryRow(method.name, method.ours, lr, "", same, *figures))
    return rows


def _peaks(
    trainer: Trainer, method: TrainingMethod, lr: float, parameters: int, counts: bool
) -> tuple[list[int], bool | None]:
    """Peaks of a step like any other, traced and resident without state; state; bucket: bytes."""
    _collect()
    before = _status("VmRSS")
    if counts:  # from here on, so that what the method keeps from step to step is counted
        tracemalloc.start()
    try:
        with trainer.training(method, lr, 0, parameters) as training:
            feed = trainer.feed(0)
            trainer.steps(training, feed, trainer.settings.warm_up, f"{method.name}, first steps")
            _collect()
            tracemalloc.reset_peak()
            _FORGET.write_text("5")  # the peak so far
            trainer.steps(training, feed, _STEPS, f"{method.name}, steps")
            own = [tracemalloc.get_traced_memory()[1], _status("VmHWM") - before]
            same = trainer.identical(method, training)
            own += [training.state(), training.bucket]
    finally:
        tracemalloc.stop()
    traced, resident, state, bucket = trainer.control.gather(np.array(own)).max(axis=0).tolist()
    return [traced, resident - state, state, bucket], same


def _status(name: str) -> int:
    found = re.search(rf"^{name}:\s*(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    if found is None:
        raise SettingsError(f"{_STATUS} has no {name}")
    return 1024 * int(found[1])


def _collect() -> None:
    gc.collect()
    _libc().malloc_trim(0)


def _libc() -> ctypes.CDLL:
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.malloc_trim  # noqa: B018
    except (OSError, AttributeError) as error:
        raise SettingsError(f"--memory needs Linux with glibc: {error}") from error
    return libc
