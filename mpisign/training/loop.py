"""Training once, one way, with everything measured."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

import mpisign
from mpisign.errors import CollectiveError
from mpisign.training import data, model, suspects, wire
from mpisign.training.attacked import Attacked
from mpisign.training.progress import Progress
from mpisign.training.settings import Settings
from mpisign.training.ways import Way
from mpisign.training.world import World

if TYPE_CHECKING:
    from mpisign.detox import Groups

_EVALUATIONS = 25


@dataclass
class Result:
    """One way's outcome. Bytes and seconds are means over ranks, per step; None: not told.

    ``suspects``: one a rank, None where nobody votes in groups. ``backdoor``: how often the model
    does what the attack is for, None where that is nothing. ``curve`` and ``accuracy`` (in
    [0, 1]) are rank 0's, which alone evaluates; ``stats`` is rank 0's ``mpisign.stats()``;
    ``digests`` holds each rank's SHA-256 of the final parameters.
    """

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
    suspects: list[suspects.Suspect] | None
    backdoor: float | None
    curve: list[dict[str, float | None]] = field(default_factory=list)

    @property
    def identical(self) -> bool:
        """Whether all ranks ended with the same parameters, bit for bit."""
        return len(set(self.digests)) == 1

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "identical": self.identical}


def steps_of(settings: Settings, dataset: data.Dataset, size: int) -> int:
    """Steps that ``settings`` mean for ``size`` ranks. The ranks of a group count as one."""
    if settings.steps is not None:
        return settings.steps
    return settings.epochs * _steps_of_an_epoch(settings, dataset, size)


def _steps_of_an_epoch(settings: Settings, dataset: data.Dataset, size: int) -> int:
    apart = size // (settings.detox or 1)
    return max(1, len(dataset.train_labels) // apart // settings.batch_size)


def learning_rate(step: int, steps: int) -> float:
    """The share of the learning rate at ``step``: half a cosine, from 1 to 0.

    A vote moves every parameter by the whole learning rate, however small its gradient: without
    decay the model would keep shaking.
    """
    return 0.5 * (1.0 + math.cos(math.pi * step / steps))


def train(
    way: Way,
    dataset: data.Dataset,
    settings: Settings,
    world: World,
    progress: Progress,
    comm: mpisign.Communicator | None = None,
) -> Result:
    """Trains a new model on ``dataset``, this rank on its shard; the same Result on every rank.

    ``comm``: for groups and adversaries, if ``settings`` have any.
    Raises CollectiveError if the ranks would start from different parameters.
    """
    net = model.build(dataset.train_images.shape[1:], settings.seed)
    if len(set(_digests(world, net))) != 1:
        raise CollectiveError(
            "train: ranks start from different parameters: unlike torch versions?"
        )
    lr, momentum = settings.rates(way.votes)
    plain = torch.optim.SGD(net.parameters(), lr=lr, momentum=momentum)
    groups = None if comm is None else settings.groups(comm)
    compressor = settings.compressor(groups) if way.votes else None
    optimizer = way.wrap(plain, net, settings, compressor)
    attacked = Attacked(way, settings, comm, groups if way.votes else None)
    feed = _feed(dataset, settings, world, groups)
    test = torch.from_numpy(dataset.test_images), torch.from_numpy(dataset.test_labels)
    steps = steps_of(settings, dataset, world.size)
    counts_wire = wire.measurable(world) and not attacked.hostile

    mpisign.stats().reset()
    watch = None
    if groups is not None:
        watch = suspects.Watch(groups)
    curve: list[dict[str, float | None]] = []
    seconds, crossed, loss = 0.0, 0, math.nan
    # Closer together at the start, where accuracy still moves.
    marks = sorted({round(steps * (i / _EVALUATIONS) ** 2) for i in range(_EVALUATIONS + 1)})
    for begin, end in zip([0, *marks], marks, strict=False):
        world.barrier()
        lo, start = wire.loopback_sent() or 0, time.perf_counter()
        for step in range(begin, end):
            optimizer.param_groups[0]["lr"] = lr * learning_rate(step, steps)
            loss = _step(net, optimizer, next(feed), attacked)
            if watch is not None:
                watch.step()
            progress.step(step + 1)
        world.barrier()
        seconds += time.perf_counter() - start
        crossed += (wire.loopback_sent() or 0) - lo
        if world.rank == 0:
            sent = mpisign.stats().as_dict()["exchange"]["sent"]
            right = model.accuracy(net, *test)
            told = loss if math.isfinite(loss) else None
            curve.append({"step": end, "sent": sent, "accuracy": right, "loss": told})
            progress.evaluated(end, right)
    return _result(
        way,
        way.label_of(settings),
        net,
        world,
        curve,
        steps,
        seconds - attacked.seconds,
        crossed if counts_wire and steps else None,
        None if watch is None else watch.gather(world),
        attacked.success(net),
    )


def _feed(
    dataset: data.Dataset, settings: Settings, world: World, groups: Groups | None
) -> Iterator[tuple[data.Images, data.Labels]]:
    """This rank's batches: of its shard, or its group's."""
    if groups is None:
        images, labels = dataset.shard(world.rank, world.size)
        return data.batches(images, labels, settings.batch_size, settings.seed, world.rank)
    from mpisign.detox import GroupSampler

    sampler = GroupSampler(
        range(len(dataset.train_labels)), groups, order=settings.order, seed=settings.seed
    )
    return data.group_batches(dataset, sampler, settings.batch_size)


def _step(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: tuple[data.Images, data.Labels],
    attacked: Attacked,
) -> float:
    """One step; the loss."""
    images, labels = attacked.batch(batch)
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(net(torch.from_numpy(images)), torch.from_numpy(labels))
    attacked.backward(loss, net)
    optimizer.step()
    return float(loss.detach())


def _digests(world: World, net: nn.Module) -> list[str]:
    own = np.frombuffer(bytes.fromhex(model.digest(net)), dtype=np.uint8)
    return [row.tobytes().hex() for row in world.gather(own)]


def _result(
    way: Way,
    label: str,
    net: nn.Module,
    world: World,
    curve: list[dict[str, float | None]],
    steps: int,
    seconds: float,
    crossed: int | None,
    suspected: list[suspects.Suspect] | None,
    backdoor: float | None,
) -> Result:
    stats = mpisign.stats().as_dict()
    totals = [stats["exchange"]["sent"], stats["exchange"]["received"], seconds]
    totals += [stage["seconds"] for stage in stats.values()]
    accuracy = curve[-1]["accuracy"] if curve else 0.0
    gathered = world.gather(np.array([*totals, accuracy], dtype=np.float64))
    sent, received, seconds, *stages = gathered[:, :-1].mean(axis=0) / max(1, steps)
    return Result(
        way=way.name,
        label=label,
        via=way.via,
        votes=way.votes,
        parameters=sum(p.numel() for p in net.parameters()),
        steps=steps,
        accuracy=float(gathered[0, -1]),
        sent=float(sent),
        received=float(received),
        wire=None if crossed is None else crossed / world.size / steps,
        seconds=float(seconds),
        stages={name: float(s) for name, s in zip(stats, stages, strict=True)},
        stats=stats,
        digests=_digests(world, net),
        suspects=suspected,
        backdoor=backdoor,
        curve=curve,
    )
