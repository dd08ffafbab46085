"""Training once, one way, with everything measured."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

import mpisign
from mpisign.errors import CollectiveError
from mpisign.training import data, model, wire
from mpisign.training.progress import Progress
from mpisign.training.settings import Settings
from mpisign.training.ways import Way
from mpisign.training.world import World

_EVALUATIONS = 25


@dataclass
class Result:
    """One way's outcome. Bytes and seconds are means over ranks, per step; None: not told.

    ``curve`` and ``accuracy`` (in [0, 1]) are rank 0's, which alone evaluates; ``stats`` is rank
    0's ``mpisign.stats()``; ``digests`` holds each rank's SHA-256 of the final parameters.
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
    curve: list[dict[str, float | None]] = field(default_factory=list)

    @property
    def identical(self) -> bool:
        """Whether all ranks ended with the same parameters, bit for bit."""
        return len(set(self.digests)) == 1

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "identical": self.identical}


def steps_of(settings: Settings, dataset: data.Dataset, size: int) -> int:
    """Steps that ``settings`` mean for ``size`` ranks."""
    if settings.steps is not None:
        return settings.steps
    return settings.epochs * max(1, len(dataset.train_labels) // size // settings.batch_size)


def learning_rate(step: int, steps: int) -> float:
    """The share of the learning rate at ``step``: half a cosine, from 1 to 0.

    A vote moves every parameter by the whole learning rate, however small its gradient: without
    decay the model would keep shaking.
    """
    return 0.5 * (1.0 + math.cos(math.pi * step / steps))


def train(
    way: Way, dataset: data.Dataset, settings: Settings, world: World, progress: Progress
) -> Result:
    """Trains a new model on ``dataset``, this rank on its shard; the same Result on every rank.

    Raises CollectiveError if the ranks would start from different parameters.
    """
    net = model.build(dataset.train_images.shape[1:], settings.seed)
    if len(set(_digests(world, net))) != 1:
        raise CollectiveError(
            "train: ranks start from different parameters: unlike torch versions?"
        )
    lr = settings.vote_lr() if way.votes else settings.fp32_lr
    momentum = 0.0 if way.votes else settings.momentum
    plain = torch.optim.SGD(net.parameters(), lr=lr, momentum=momentum)
    optimizer = way.wrap(plain, net, settings)
    images, labels = dataset.shard(world.rank, world.size)
    feed = data.batches(images, labels, settings.batch_size, settings.seed, world.rank)
    test = torch.from_numpy(dataset.test_images), torch.from_numpy(dataset.test_labels)
    scale = settings.loss_scale(world.rank, world.size)
    steps = steps_of(settings, dataset, world.size)
    counts_wire = wire.measurable(world)

    mpisign.stats().reset()
    curve: list[dict[str, float | None]] = []
    seconds, crossed, loss = 0.0, 0, math.nan
    # Closer together at the start, where accuracy still moves.
    marks = sorted({round(steps * (i / _EVALUATIONS) ** 2) for i in range(_EVALUATIONS + 1)})
    for begin, end in zip([0, *marks], marks, strict=False):
        world.barrier()
        lo, start = wire.loopback_sent() or 0, time.perf_counter()
        for step in range(begin, end):
            optimizer.param_groups[0]["lr"] = lr * learning_rate(step, steps)
            loss = _step(net, optimizer, next(feed), scale)
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
        seconds,
        crossed if counts_wire and steps else None,
    )


def _step(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: tuple[data.Images, data.Labels],
    scale: float,
) -> float:
    """One step; a hostile rank's ``scale`` is in its loss, so that every way sees it. The loss."""
    images, labels = batch
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(net(torch.from_numpy(images)), torch.from_numpy(labels))
    (scale * loss).backward()
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
        curve=curve,
    )
