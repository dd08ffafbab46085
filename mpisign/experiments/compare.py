"""``mpisign train``: one cell for each variant, trained and measured by the ranks of this job."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

import mpisign
from mpisign import launcher
from mpisign.errors import CollectiveError, LauncherError
from mpisign.experiments import (
    compression,
    data,
    files,
    loop,
    model,
    progress,
    report,
    suspects,
)
from mpisign.experiments import world as worlds
from mpisign.experiments.errors import SettingsError, need
from mpisign.experiments.hostile import Hostile
from mpisign.experiments.settings import EPOCHS, MOST_STEPS, Settings, check
from mpisign.experiments.tasks.images import Images
from mpisign.experiments.variants import VARIANTS, Variant
from mpisign.experiments.world import TrainingWorld
from mpisign.log import TensorBoard

_POINTS = 100  # of TensorBoard's curves
_SAMPLE = 2000  # test images of a curve's points: 10,000 take seconds; the end is of all
_HEAD_START = 1.0  # seconds that rank 0 has for its message before a launcher ends all ranks


@dataclass
class Result:
    """One variant's outcome. Bytes and seconds are means over ranks, per step; None: not known."""

    way: str
    label: str
    via: str
    votes: bool
    parameters: int
    steps: int
    accuracy: float
    sent: float
    received: float
    wire: float | None
    seconds: float
    stages: dict[str, float]
    stats: dict[str, Any]
    digests: list[str]
    identical: bool
    suspects: list[suspects.Suspect] | None
    backdoor: float | None
    curve: list[dict[str, float | None]]


class EndingSignals(Protocol):
    """What may end a training early: ``number``, of the signal that came; 0 if none did."""

    number: int

    def ask_first(self) -> None:
        """From now on a signal asks all ranks to stop after a step, instead of ending this one."""


def run(
    settings: Settings,
    note: str = "",
    command: str = "mpisign train",
    signals: EndingSignals | None = None,
) -> int:
    """Trains every variant of ``settings``; 0, or 2 if the settings cannot be used.

    Where a signal came: 128 + its number, with what was measured until then.
    """
    torch.set_num_threads(1)
    variants = [VARIANTS[name] for name in settings.ways]
    world = None
    try:
        world = joined = worlds.join({variant.via for variant in variants})
        dataset = worlds.agreed(world, lambda: _prepare(settings, joined))
    except (SettingsError, LauncherError, ImportError) as error:
        return _refused(str(error), world)
    if world.rank == 0 and note:
        print(note, flush=True)
    comm = None
    if settings.detox is not None or settings.adversaries:
        comm = mpisign.Communicator(world.kind)
    results: list[Result] = []
    stopped = None
    for variant in variants:
        if variant.via == "horovod":
            try:
                worlds.start_horovod(world)
            except LauncherError as error:
                return _refused(str(error), world)
        if variant.via == "torch":
            worlds.start_torch(world)
        steps, label = steps_of(settings, dataset, world.size), variant.label_of(settings)
        with progress.of_steps(label, steps, world.rank == 0) as update:
            results.append(train(variant, dataset, settings, world, update, comm, signals))
        if mpisign.stop_requested():
            numbers = world.gather(np.array([signals.number if signals else 0]))
            stopped = report.Stopped(
                variant.name, label, results[-1].steps, steps, int(numbers.max())
            )
            break
    if world.rank == 0:
        report.write(results, settings, world, dataset.name, command, stopped)
    world.barrier()
    if comm is not None:
        comm.free()
    worlds.stop()
    return 0 if stopped is None else stopped.status


def _prepare(settings: Settings, world: TrainingWorld) -> data.Dataset:
    """Checks everything that may be unusable, before anything is trained."""
    if world.rank == 0:
        need("rich")
        for option in ("json", "plot", "markdown"):
            files.check_path(f"--{option}", getattr(settings, option))
        if settings.plot is not None:
            need("matplotlib")
        if settings.tensorboard is not None:
            need("tensorboard", "tensorboard")
            files.make_folder("--tensorboard", settings.tensorboard)
        if settings.markdown is not None:
            files.around(settings.markdown, report.MARK)
    dataset = data.load(settings.data)
    check(settings, world.size, dataset)
    dataset.shard(world.rank, world.size)
    if any(VARIANTS[name].via == "horovod" for name in settings.ways):
        try:
            import mpisign.horovod  # noqa: F401
        except ImportError as error:
            raise SettingsError(str(error)) from error
    return dataset


def _refused(message: str, world: TrainingWorld | None) -> int:
    if not (launcher.rank() if world is None else world.rank):
        print(f"mpisign train: error: {message}", file=sys.stderr, flush=True)
    else:
        time.sleep(_HEAD_START)
    worlds.stop()
    return 2


def steps_of(settings: Settings, dataset: data.Dataset, size: int) -> int:
    """Steps that ``settings`` mean for ``size`` ranks. The ranks of a group count as one."""
    if settings.steps is not None:
        return settings.steps
    shares = size // (settings.detox or 1)
    epoch = data.steps_of_epoch(dataset, shares, settings.batch_size)
    if settings.epochs is not None:
        return settings.epochs * epoch
    return min(EPOCHS * epoch, MOST_STEPS)


def train(
    variant: Variant,
    dataset: data.Dataset,
    settings: Settings,
    world: TrainingWorld,
    update: Callable[..., None],
    comm: mpisign.Communicator | None,
    signals: EndingSignals | None = None,
) -> Result:
    """Trains a new model on ``dataset``, this rank on its share; the same Result on every rank."""
    steps = steps_of(settings, dataset, world.size)
    cell = settings.cell(variant.votes, world.size, steps)
    net = model.build(dataset.train_images.shape[1:], cell.seed)
    if len(set(world.gather_digests(model.digest(net)))) != 1:
        raise CollectiveError(
            "train: ranks start from different parameters: unlike torch versions?"
        )
    groups = None if comm is None else settings.groups(comm)
    share = world.rank, world.size, cell.batch_size, cell.seed
    feed = data.feed(dataset, *share, groups, order=settings.order)
    test = dataset.test_images, dataset.test_labels
    task = Images(net, feed, steps, test, sample=_SAMPLE)
    voters = groups if variant.votes else None
    compressor = compression.compressor(cell, voters)
    optimizer = variant.wrap(cell, task.named, compressor)
    hostile = Hostile(cell, comm, task, compressor, voters, eager=variant.via == "horovod")
    mpisign.stats().reset()
    watch = None if groups is None else suspects.Watch(groups)
    board = None
    if settings.tensorboard is not None and world.rank == 0:
        every = max(1, steps // _POINTS)
        board = TensorBoard(settings.tensorboard / variant.name, every=every, rank=0)

    def stepped(step: int) -> None:
        if watch is not None:
            watch.step()
        if step == 1 and signals is not None:
            signals.ask_first()  # until then a rank may be importing for seconds
        update(step)
        if board is not None:
            board.step(step)

    def evaluated(found: loop.Evaluation) -> None:
        if found.test is not None:
            update(found.step, found.test)
        if board is not None:
            curves = {"test accuracy": found.test}
            if found.step:
                curves["train/loss"] = found.mean
            board.scalars(found.step, {k: v for k, v in curves.items() if v is not None})

    # Closer together at the start, where accuracy still moves.
    parts = cell.evaluations
    marks = sorted({round(steps * (i / parts) ** 2) for i in range(parts + 1)})
    with board or nullcontext():
        done = loop.train(
            cell, task, optimizer, hostile, marks, world.rank, world, stepped, evaluated
        )
    suspected = None if watch is None else watch.gather(world)
    stats = mpisign.stats().as_dict()
    totals = [stats["exchange"]["sent"], stats["exchange"]["received"]]
    totals += [done.seconds - hostile.seconds, *(stage["seconds"] for stage in stats.values())]
    gathered = world.gather(np.array([*totals, done.test or 0.0], dtype=np.float64))
    steps = done.steps
    sent, received, seconds, *stages = map(float, gathered[:, :-1].mean(axis=0) / max(1, steps))
    counted = worlds.wire_measurable(world) and hostile.adversaries is None
    digests = world.gather_digests(done.digest)
    return Result(
        way=variant.name,
        label=variant.label_of(settings),
        via=variant.via,
        votes=variant.votes,
        parameters=done.parameters,
        steps=steps,
        accuracy=float(gathered[0, -1]),
        sent=sent,
        received=received,
        wire=done.crossed / world.size / max(1, steps) if counted else None,
        seconds=seconds,
        stages=dict(zip(stats, stages, strict=True)),
        stats=stats,
        digests=digests,
        identical=len(set(digests)) == 1,
        suspects=suspected,
        backdoor=hostile.success(net),
        curve=[
            {"step": p.step, "sent": p.sent, "accuracy": p.test, "loss": p.last} for p in done.curve
        ],
    )
