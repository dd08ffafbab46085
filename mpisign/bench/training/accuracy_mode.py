"""Time to an accuracy: each way to the end of its schedule, with every seed; or with every rate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

from mpisign.bench.errors import BenchError
from mpisign.bench.training import rates
from mpisign.bench.training.names import Named
from mpisign.bench.training.results import AccuracyRow, Point, Run, less_than_base
from mpisign.bench.training.trainer import Trainer

_REHEARSAL = 2  # steps
_CLOSE = 0.005  # final accuracies as close as the goal allows


def measure(
    trainer: Trainer,
    ways: Sequence[tuple[Named, float]],
    begin: Callable[[str], None],
    end: Callable[[], None],
) -> list[AccuracyRow]:
    """A row a way, its seeds by turns with those of the others."""
    settings = trainer.settings
    errors: dict[str, str] = {}
    runs: dict[str, list[Run]] = {way.name: [] for way, _ in ways}
    for way, lr in ways:
        begin(f"{way.name}, first steps")
        try:
            with trainer.training(way, lr, seed=0) as training:
                what = f"{way.name}, first steps"
                trainer.steps(training, trainer.feed(0), _REHEARSAL, what, None)
        except BenchError as error:
            errors[way.name] = str(error)
        end()
    for seed in range(settings.seeds):
        for way, lr in ways:
            begin(f"{way.name}, seed {seed}")
            if way.name not in errors:
                try:
                    runs[way.name].append(_run(trainer, way, lr, seed))
                except BenchError as error:
                    errors[way.name] = str(error)
            end()
    rows = []
    for way, lr in ways:
        found = [] if way.name in errors else runs[way.name]
        same = [r.identical for r in found if r.identical is not None]
        rows.append(
            AccuracyRow(
                way.name,
                way.ours,
                lr,
                errors.get(way.name, ""),
                all(same) if same else None,
                settings.accuracy,
                found,
            )
        )
    return less_than_base(rows)


def tune(
    trainer: Trainer,
    ways: Sequence[tuple[Named, float]],
    begin: Callable[[str], None],
    end: Callable[[], None],
) -> list[AccuracyRow]:
    """A row for each way and rate, the way's best first."""
    found = []
    for way, around in ways:
        rows = []
        for lr in rates.grid(around):
            rows += measure(trainer, [(way, lr)], begin, end)
        found += sorted(rows, key=lambda row: _worth(row, rows))
    return found


def _worth(row: AccuracyRow, rows: Sequence[AccuracyRow]) -> tuple[bool, float, float]:
    """Fewest steps to the accuracy, among those that end as well as any."""
    if not row.runs:
        return True, float("inf"), 0.0
    best = max(fmean(r.final) for r in rows if r.runs)
    steps = row.steps if row.steps is not None else float("inf")
    return fmean(row.final) < best - _CLOSE, steps, -fmean(row.final)


def _run(trainer: Trainer, way: Named, lr: float, seed: int) -> Run:
    total, every = trainer.settings.steps, trainer.settings.every
    with trainer.training(way, lr, seed) as training:
        feed, seconds, crossed = trainer.feed(seed), 0.0, 0.0
        curve: list[Point] = []
        counted: float | None = None
        for at in range(0, total, every):
            count = min(every, total - at)
            block = trainer.steps(training, feed, count, f"{way.name}, steps", (at, total))
            seconds += count * block.seconds
            if block.counted is not None:
                crossed += count * block.counted
                counted = crossed / (at + count)
            curve.append(Point(at + count, seconds, trainer.accuracy(training)))
        return Run(seed, curve, counted, trainer.identical(way, training))
