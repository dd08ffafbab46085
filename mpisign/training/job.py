"""``mpisign train`` from its settings to its report."""

from __future__ import annotations

import sys
import time

import torch

import mpisign
from mpisign.errors import LauncherError
from mpisign.training import check, data, loop, plot, report
from mpisign.training.errors import SettingsError
from mpisign.training.progress import Progress
from mpisign.training.settings import Settings
from mpisign.training.ways import WAYS
from mpisign.training.world import (
    World,
    agreed,
    join,
    start_horovod,
    start_torch,
    stop_horovod,
    stop_torch,
)

_HEAD_START = 1.0  # seconds that rank 0 has for its message before a launcher ends all ranks


def run(settings: Settings, note: str = "") -> int:
    """Trains every way of ``settings``; 0, or 2 if the settings cannot be used.

    Every rank calls it; rank 0 prints. ``note``: what to tell first.
    """
    torch.set_num_threads(1)
    ways = [WAYS[name] for name in settings.ways]
    try:
        world = join({way.via for way in ways})
    except (SettingsError, LauncherError, ImportError) as error:
        return _refused(str(error))
    try:
        dataset = agreed(world, lambda: _prepare(settings, world))
    except SettingsError as error:
        return _refused(str(error), world)
    first = world.rank == 0
    if first and note:
        print(note, flush=True)
    results = []
    comm = None
    if settings.detox is not None or settings.adversaries:
        comm = mpisign.Communicator(world.kind)
    for way in ways:
        if way.via == "horovod":
            try:
                start_horovod(world)
            except LauncherError as error:
                return _refused(str(error), world)
        if way.via == "torch":
            start_torch(world)
        with Progress(
            way.label_of(settings), loop.steps_of(settings, dataset, world.size), first
        ) as progress:
            results.append(loop.train(way, dataset, settings, world, progress, comm))
    if first:
        _report(results, settings, world, dataset.name)
    world.barrier()
    if comm is not None:
        comm.free()
    stop_horovod()
    stop_torch()
    return 0


def _prepare(settings: Settings, world: World) -> data.Dataset:
    """Everything that may turn out to be unusable, before anything is trained."""
    if world.rank == 0:
        report.check()
        report.check_path("--json", settings.json)
        report.check_path("--plot", settings.plot)
        if settings.plot is not None:
            plot.check()
    dataset = data.load(settings.data)
    check.check(settings, world.size, dataset)
    dataset.shard(world.rank, world.size)
    if any(WAYS[name].via == "horovod" for name in settings.ways):
        try:
            import mpisign.horovod  # noqa: F401
        except ImportError as error:
            raise SettingsError(str(error)) from error
    return dataset


def _report(
    results: list[loop.Result], settings: Settings, world: World, dataset_name: str
) -> None:
    report.print_table(results, settings, world, dataset_name)
    if settings.json is not None:
        report.write_json(settings.json, results, settings, world, dataset_name)
    if settings.plot is not None:
        plot.write(settings.plot, results, report.title(results, settings, world, dataset_name))
    for path in (settings.json, settings.plot):
        if path is not None:
            print(f"wrote {path}", flush=True)


def _refused(message: str, world: World | None = None) -> int:
    from mpisign import launcher

    rank = launcher.rank() if world is None else world.rank
    if not rank:
        print(f"mpisign train: error: {message}", file=sys.stderr, flush=True)
    else:
        time.sleep(_HEAD_START)
    stop_horovod()
    return 2
