"""``mpisign bench training`` from its settings to its table, JSON and plot."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from functools import partial

import torch

from mpisign.bench.errors import BenchError
from mpisign.bench.progress import Progress
from mpisign.bench.training import accuracy_mode, memory_mode, network, rates, report, step_mode
from mpisign.bench.training.goals import goals
from mpisign.bench.training.names import BASE, NONE, Named
from mpisign.bench.training.record import Record
from mpisign.bench.training.results import Row
from mpisign.bench.training.settings import Settings
from mpisign.bench.training.trainer import Trainer
from mpisign.bench.wire import nodes
from mpisign.bench.wire.join import start
from mpisign.bench.wire.run import Silent
from mpisign.bench.wire.via import Via, said
from mpisign.bench.wire.watchdog import Watchdog
from mpisign.errors import LauncherError

_HEAD_START = 1.0  # seconds that rank 0 has for its message before a launcher ends all ranks
_MODES: dict[str, Callable[..., list[Row]]] = {
    "step": step_mode.measure,  # type: ignore[dict-item]
    "accuracy": accuracy_mode.measure,  # type: ignore[dict-item]
    "tune": accuracy_mode.tune,  # type: ignore[dict-item]
    "memory": memory_mode.measure,  # type: ignore[dict-item]
}


def run(settings: Settings, ways: tuple[Named, ...], command: str) -> int:
    """Measures and reports; 0, 1 if replicas part, or 2 for what a person can put right.

    Every rank calls it.
    """
    torch.set_num_threads(1)
    opened: list[Via] = []
    try:
        control = start(settings.started, None, settings.time_limit)
        opened.append(control)
        control.agreed(lambda: _check(settings, control))
        vias = _join(ways, control, opened, settings.time_limit)
        found = nodes.find(control)
        units = network.width(settings.parameters, settings.layers)
        record = Record(command, found, settings, network.count(units, settings.layers))
        _measure(record, ways, control, vias)
        # All wait for it: a rank that leaves may take the others with it.
        control.agreed(lambda: None if control.rank else report.report(record))
    except (BenchError, LauncherError, ImportError) as error:
        if settings.rank == 0:
            print(f"mpisign bench training: error: {said(error)}", file=sys.stderr, flush=True)
        else:
            time.sleep(_HEAD_START)
        return 2
    finally:
        for via in reversed(opened):
            via.stop()
    return 1 if any(row.identical is False for row in record.rows) else 0


def _check(settings: Settings, control: Via) -> None:
    """What is unusable is said before anything is measured."""
    if control.size < 2:
        raise BenchError("needs two ranks or more: mpirun -n 4 mpisign bench training")
    if control.rank == 0:
        report.check(settings)


def _join(
    ways: tuple[Named, ...], control: Via, opened: list[Via], seconds: float
) -> dict[str, Via | str]:
    """What connects the ranks for each of ``ways``, or why it does not; Horovod starts later."""
    found: dict[str, Via | str] = {control.name: control}
    for name in sorted({way.via for way in ways} - {"", control.name}):
        try:
            control.agreed(partial(_import, name))
            if name == "horovod" and control.name == "mpi":
                found[name] = ""
            else:
                # Sooner than the watchdog: who hangs in Gloo is a row's error, not the run's end.
                via = start(name, control, seconds / 2)
                opened.append(via)
                found[name] = via
        except (BenchError, LauncherError) as error:
            found[name] = str(error)
    return found


def _import(name: str) -> None:
    if name == "horovod":
        import horovod.torch  # noqa: F401
    elif name == "torch":
        import torch.distributed  # noqa: F401


def _measure(
    record: Record, ways: tuple[Named, ...], control: Via, vias: dict[str, Via | str]
) -> None:
    """Fills ``record``."""
    settings = record.settings

    def give_up(what: str) -> None:
        if control.rank == 0:
            seconds = f"{settings.time_limit:.0f} s"
            print(f"mpisign: gave up: {what}: nothing for {seconds}", file=sys.stderr, flush=True)
        else:
            time.sleep(_HEAD_START)
        os._exit(1)

    watchdog = Watchdog(settings.time_limit, give_up)
    trainer = control.agreed(lambda: Trainer(control, vias, record.nodes, settings, watchdog))
    plan = [(way, settings.lr.get(way.name, rates.rate(way))) for way in ways]
    with Progress(_turns(settings, len(plan))) if control.rank == 0 else Silent() as progress:
        record.rows = _MODES[settings.mode](trainer, plan, progress.begin, progress.end)
    record.goals = list(goals(record.rows, record.nodes, record.parameters))
    names = [row.way for row in record.rows if not row.error]
    if settings.mode == "step" and NONE not in names:
        record.notes.append("x none: needs the way none.")
    if settings.mode in ("step", "accuracy") and BASE not in names:
        record.notes.append(f"x fp16: needs the way {BASE}.")


def _turns(settings: Settings, ways: int) -> int:
    """What progress is told of."""
    each = {
        "step": settings.repeat + 1,
        "memory": 3,
        "accuracy": 1 + settings.seeds,
        "tune": (1 + settings.seeds) * len(rates.grid(1.0)),
    }
    return each[settings.mode] * ways
