"""One cell, as one rank runs it: simulated and real ranks run these lines."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from typing import Any

import torch

import mpisign
from mpisign.errors import NaNError
from mpisign.study import tasks
from mpisign.study.attacks import Attack
from mpisign.study.cell import Cell
from mpisign.study.tasks.base import Named, Task
from mpisign.training.errors import SettingsError

_OPTIMIZERS = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}


@dataclass
class Trained:
    """What one rank ended with; all but ``digest`` and ``parameters`` are rank 0's only.

    ``curve``: step, metric on the test part, mean training loss of rank 0 since the last point.
    ``diverged``: the step at which gradients or parameters were no longer finite.
    """

    digest: str
    parameters: int
    steps: int
    validation: float | None = None
    test: float | None = None
    diverged: int | None = None
    curve: list[tuple[int, float | None, float | None]] = field(default_factory=list)


def compressor(cell: Cell) -> Any:
    """What ``compression=`` takes; SettingsError for a name or options that no compressor has."""
    if cell.compressor == "none":
        if cell.compressor_options:
            raise SettingsError(f"compressor 'none': no options, got {cell.compressor_options}")
        return "none"
    make = getattr(mpisign.Compression, cell.compressor, None)
    if make is None:
        known = [n for n in dir(mpisign.Compression) if not n.startswith("_")]
        raise SettingsError(
            f"compressor: expected one of {', '.join(known)}, got {cell.compressor!r}"
        )
    try:
        return make(**cell.compressor_options)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"options of compressor {cell.compressor!r}: {error}") from error


def optimizer(cell: Cell, named: Named) -> torch.optim.Optimizer:
    """The torch optimizer of ``cell``; SettingsError for options that it does not know."""
    try:
        return _OPTIMIZERS[cell.optimizer](  # type: ignore[no-any-return, operator]
            [p for _, p in named], lr=cell.lr, **cell.optimizer_options
        )
    except (TypeError, ValueError) as error:
        raise SettingsError(f"optimizer_options of {cell.optimizer!r}: {error}") from error


def train(comm: mpisign.Communicator, cell: Cell) -> Trained:
    """Trains this rank's replica to the end, or until it diverges. Collective."""
    task = tasks.build(cell, comm.rank)
    stepping = mpisign.DistributedOptimizer(
        optimizer(cell, task.named),
        task.named,
        comm=comm,
        compression=compressor(cell),
        seed=cell.seed,
    )
    attack = None
    if cell.attack is not None and cell.hostile(comm.rank):
        attack = Attack(cell.attack, cell.seed, comm.rank)
    steps, size = task.steps, sum(p.numel() for _, p in task.named)
    trained = Trained("", size, steps)
    marks = {round(steps * (i + 1) / cell.evaluations) for i in range(cell.evaluations)}
    loss, since = torch.zeros(()), 0
    for step in range(steps):
        for group in stepping.param_groups:
            group["lr"] = cell.rate(step, steps)
        stepping.zero_grad()
        loss, since = loss + task.backward(step), since + 1
        if attack is not None:
            attack(p for _, p in task.named)
        try:
            stepping.step()
        except NaNError:  # the same on all ranks
            trained.diverged = step
            break
        if step + 1 in marks:
            if not all(bool(p.isfinite().all()) for _, p in task.named):  # replicas are equal
                trained.diverged = step
                break
            if comm.rank == 0:
                _evaluate(trained, task, step + 1, float(loss) / since)
            loss, since = torch.zeros(()), 0
    trained.digest = digest(task.named)
    return trained


def _evaluate(trained: Trained, task: Task, step: int, loss: float) -> None:
    trained.validation, trained.test = (_finite(v) for v in task.evaluate())
    trained.curve.append((step, trained.test, _finite(loss)))


def _finite(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None


def digest(named: Named) -> str:
    """SHA-256 of all parameters' bytes, in hexadecimal."""
    sha = hashlib.sha256()
    for _, p in named:
        sha.update(p.detach().contiguous().numpy().tobytes())
    return sha.hexdigest()
