"""The training loop of ``mpisign train`` and ``mpisign study``, on real and simulated ranks."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch

import mpisign
from mpisign import stopping
from mpisign.compressors import Compressor
from mpisign.errors import NaNError
from mpisign.experiments import model
from mpisign.experiments.cell import Cell
from mpisign.experiments.errors import SettingsError
from mpisign.experiments.hostile import Hostile
from mpisign.experiments.muon_and_adamw import MuonAndAdamW
from mpisign.experiments.tasks.base import Named, Task
from mpisign.experiments.world import TrainingWorld, loopback_sent

_OPTIMIZERS = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW, "muon": MuonAndAdamW}


@dataclass(frozen=True)
class Evaluation:
    """An evaluation by rank 0, after ``step`` steps in which it sent ``sent`` bytes."""

    step: int
    sent: float
    test: float | None
    mean: float | None
    last: float | None


@dataclass
class Trained:
    """What one rank ended with. Only rank 0 evaluates: ``validation``, ``test``, ``curve``."""

    parameters: int
    steps: int
    digest: str = ""
    validation: float | None = None
    test: float | None = None
    diverged: int | None = None
    curve: list[Evaluation] = field(default_factory=list)
    seconds: float = 0.0
    crossed: int = 0
    more: dict[str, Any] = field(default_factory=dict)


def train(
    cell: Cell,
    task: Task,
    optimizer: torch.optim.Optimizer,
    hostile: Hostile,
    marks: Sequence[int],
    rank: int,
    world: TrainingWorld | None = None,
    stepped: Callable[[int], None] | None = None,
    evaluated: Callable[[Evaluation], None] | None = None,
) -> Trained:
    """Trains this rank's replica, and evaluates after each of ``marks`` steps. Collective.

    Ends early, on all ranks after the same step, where one of them was asked to stop.
    """
    steps, step, taken = marks[-1], 0, 0
    done = Trained(sum(p.numel() for _, p in task.named), steps)
    try:
        for begin, end in pairwise([0, *marks]):
            last, total, losses = torch.full((), torch.nan), torch.zeros(()), 0
            with _timed(done, world):
                for step in range(begin, end):
                    for group in optimizer.param_groups:
                        group["lr"] = cell.rate(step, steps)
                    optimizer.zero_grad()
                    if cell.participation == 1 or mpisign.takes_part(optimizer):
                        last = hostile.backward(task, step)
                        total, losses = total + last, losses + 1
                    optimizer.step()
                    taken = step + 1
                    if stepped is not None:
                        stepped(taken)
                    if mpisign.stop_requested():
                        break
            if world is None and not all(bool(p.isfinite().all()) for _, p in task.named):
                done.diverged = step  # on all ranks: replicas are equal
                break
            if rank == 0:
                done.validation, done.test = map(finite, task.evaluate())
                sent = mpisign.stats().as_dict()["exchange"]["sent"]
                mean = finite(float(total) / max(1, losses))
                done.curve.append(Evaluation(taken, sent, done.test, mean, finite(float(last))))
                if evaluated is not None:
                    evaluated(done.curve[-1])
            if world is not None and _stop_asked(world):
                done.steps = taken
                break
    except NaNError:  # the same on all ranks
        if world is not None:
            raise
        done.diverged = step
    if rank == 0 and done.diverged is None:
        done.more = task.more()
    done.digest = model.digest(task.named)
    return done


def _stop_asked(world: TrainingWorld) -> bool:
    """Whether any rank was asked to stop: also where no exchange of ours carries it."""
    request = stopping.current()
    if world.gather(np.array([request.asked], dtype=np.uint8)).any():
        request.agree()
    return request.agreed


@contextmanager
def _timed(done: Trained, world: TrainingWorld | None) -> Iterator[None]:
    """Adds the time and the bytes of a block to ``done``, from the first rank to the last."""
    if world is None:
        yield
        return
    world.barrier()
    before, start = loopback_sent() or 0, time.perf_counter()
    yield
    world.barrier()
    done.seconds += time.perf_counter() - start
    done.crossed += (loopback_sent() or 0) - before


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def check_optimizer(cell: Cell) -> None:
    """Raises SettingsError for options that the torch optimizer does not have."""
    try:
        options = {"lr": cell.lr, **cell.optimizer_options}
        inspect.signature(_OPTIMIZERS[cell.optimizer]).bind([], **options)
    except TypeError as error:
        raise SettingsError(f"optimizer_options of {cell.optimizer!r}: {error}") from error


def plain_optimizer(cell: Cell, named: Named) -> torch.optim.Optimizer:
    """The torch optimizer of ``cell``."""
    parameters: Any = named if cell.optimizer == "muon" else [p for _, p in named]
    return _OPTIMIZERS[cell.optimizer](  # type: ignore[no-any-return, operator]
        parameters, lr=cell.lr, **cell.optimizer_options
    )


def distributed(
    cell: Cell, named: Named, comm: mpisign.Communicator | str, compressor: Compressor
) -> torch.optim.Optimizer:
    """The optimizer of ``cell``, in which the ranks of ``comm`` agree on each step."""
    return mpisign.DistributedOptimizer(
        plain_optimizer(cell, named),
        named,
        comm=comm,
        compression=compressor,
        seed=cell.seed,
        byzantine_f=cell.byzantine_f,
        algorithm=cell.algorithm,  # type: ignore[arg-type]
        skip=None if cell.skip == "none" else cell.skip,
        participation=cell.participation,
    )
