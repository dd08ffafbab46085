"""``mpisign bench training`` from its settings to its report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from mpisign.bench import runner
from mpisign.bench.collectives import nodes
from mpisign.bench.collectives.run import JobRecord
from mpisign.bench.collectives.via import Via
from mpisign.bench.progress import progress
from mpisign.bench.settings import TrainingSettings
from mpisign.bench.training import modes, names, network
from mpisign.bench.training.names import BASE, NONE, TrainingMethod, methods
from mpisign.bench.training.results import goals
from mpisign.bench.training.shown import SHOWN
from mpisign.bench.training.trainer import Trainer
from mpisign.errors import LauncherError
from mpisign.experiments.errors import SettingsError

_MODES: dict[str, Callable[..., Any]] = {
    "step": modes.step,
    "accuracy": modes.accuracy,
    "tune": modes.tune,
    "memory": modes.memory,
}


@dataclass(kw_only=True)
class TrainingRecord(JobRecord):
    """One run of ``mpisign bench training``. ``parameters``: those of the model."""

    parameters: int


def run(settings: TrainingSettings, command: str) -> int:
    """Measures and reports; 0, 1 if replicas differ, 2 after an error of the user. Collective."""
    torch.set_num_threads(1)
    # One mark for each mode: a page can hold the tables of all.
    name = f"{settings.NAME}: {settings.mode}"
    units = network.width(settings.parameters, settings.layers)
    parameters = network.count(units, settings.layers)
    record = TrainingRecord(name=name, command=command, settings=settings, parameters=parameters)

    def work(opened: list[Via]) -> None:
        control = opened[0]
        chosen = methods(settings.ways, ())
        vias = _join(chosen, control, opened, settings.time_limit)
        record.nodes = nodes.find(control)
        _measure(record, chosen, control, vias)

    status = runner.run(settings, record, SHOWN, settings.time_limit, work)
    return status or int(any(row.identical is False for row in record.rows))


def _join(
    chosen: tuple[TrainingMethod, ...], control: Via, opened: list[Via], seconds: float
) -> dict[str, Via | str]:
    """The library of each method, or why it does not run; Horovod starts later under mpirun."""
    found: dict[str, Via | str] = {control.name: control}
    for name in sorted({method.via for method in chosen} - {"", control.name}):
        try:
            runner.imported(name, control)
            if name == "horovod" and control.name == "mpi":
                found[name] = ""
            else:
                # Sooner than the watchdog: a hang in Gloo is an error of one row.
                via = runner.start(name, control, seconds / 2)
                opened.append(via)
                found[name] = via
        except (SettingsError, LauncherError) as error:
            found[name] = str(error)
    return found


def _measure(
    record: TrainingRecord, chosen: tuple[TrainingMethod, ...], control: Via,
    vias: dict[str, Via | str],
) -> None:  # fmt: skip
    """Fills ``record``."""
    settings: TrainingSettings = record.settings
    limit = f"nothing for {settings.time_limit:.0f} s"
    watchdog = runner.watchdog(
        control, settings.time_limit, lambda what: f"mpisign: gave up: {what}: {limit}"
    )
    trainer = control.agreed(lambda: Trainer(control, vias, record.nodes, settings, watchdog))
    plan = [(method, settings.lr.get(method.name, names.rate(method))) for method in chosen]
    each = {
        "step": settings.repeat + 1,
        "memory": 3,
        "accuracy": 1 + settings.seeds,
        "tune": (1 + settings.seeds) * len(names.grid(1.0)),
    }[settings.mode]
    with progress(each * len(plan), shown=control.rank == 0) as begin:
        record.rows = _MODES[settings.mode](trainer, plan, begin)
    record.goals = list(goals(record.rows, record.nodes, record.parameters))
    there = [row.method for row in record.rows if not row.error]
    if settings.mode == "step" and NONE not in there:
        record.notes.append(f"x none: needs the method {NONE}.")
    if settings.mode in ("step", "accuracy") and BASE not in there:
        record.notes.append(f"x fp16: needs the method {BASE}.")
