"""What ``mpisign bench training`` measures of time: steps, time to an accuracy, learning names."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from mpisign.bench.errors import BenchError
from mpisign.bench.progress import Begin
from mpisign.bench.training import names
from mpisign.bench.training.names import TrainingMethod
from mpisign.bench.training.results import AccuracyRow, Point, Run, StepRow, beside, less_than_base
from mpisign.bench.training.trainer import Block, Trainer

#: Methods and the learning rates at the start of their schedules.
Plan = Sequence[tuple[TrainingMethod, float]]

_WARM_UP = 2  # steps
_CLOSE = 0.005  # final accuracies as close as the goal allows


def step(trainer: Trainer, plan: Plan, begin: Begin) -> list[StepRow]:
    """Seconds per step: all methods in turns, in rounds of which the first does not count."""
    settings = trainer.settings
    blocks: dict[str, list[Block]] = {method.name: [] for method, _ in plan}
    errors: dict[str, str] = {}
    same: dict[str, bool] = {}
    for number in range(settings.repeat + 1):
        # Another goes first each time: no method always follows the same one.
        first = number % len(plan)
        for method, lr in (*plan[first:], *plan[:first]):
            name = method.name
            begin(f"round {number} of {settings.repeat}, {name}")
            if name in errors:
                continue
            try:
                with trainer.training(method, lr, seed=0) as training:
                    feed = trainer.feed(seed=0)
                    trainer.steps(training, feed, settings.warm_up, f"{name}, first steps")
                    block = trainer.steps(training, feed, settings.steps, f"{name}, steps")
                    identical = trainer.identical(method, training)
            except BenchError as error:
                errors[name] = str(error)
                continue
            if number:
                blocks[name].append(block)
            if identical is not None:
                same[name] = identical and same.get(name, True)
    rows = [
        StepRow(m.name, m.ours, lr, errors[m.name])
        if m.name in errors
        else StepRow(m.name, m.ours, lr, "", same.get(m.name), blocks[m.name])
        for m, lr in plan
    ]
    return beside(rows)


def accuracy(trainer: Trainer, plan: Plan, begin: Begin) -> list[AccuracyRow]:
    """Each method to the end of its schedule with every seed, in turns with the others."""
    settings = trainer.settings
    errors: dict[str, str] = {}
    runs: dict[str, list[Run]] = {method.name: [] for method, _ in plan}
    for method, lr in plan:
        what = f"{method.name}, first steps"
        begin(what)
        try:
            with trainer.training(method, lr, seed=0) as training:
                trainer.steps(training, trainer.feed(0), _WARM_UP, what)
        except BenchError as error:
            errors[method.name] = str(error)
    for seed in range(settings.seeds):
        for method, lr in plan:
            begin(f"{method.name}, seed {seed}")
            try:
                if method.name not in errors:
                    runs[method.name].append(_run(trainer, method, lr, seed))
            except BenchError as error:
                errors[method.name] = str(error)
    rows = []
    for m, lr in plan:
        why = errors.get(m.name, "")
        found = [] if why else runs[m.name]
        same = [r.identical for r in found if r.identical is not None]
        identical = all(same) if same else None
        rows.append(AccuracyRow(m.name, m.ours, lr, why, identical, settings.accuracy, found))
    return less_than_base(rows)


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
