"""One cell, as one rank runs it: simulated and real ranks run these lines."""

from __future__ import annotations

import hashlib
import inspect
import math
from dataclasses import dataclass, field
from typing import Any

import torch

import mpisign
from mpisign.attacks.owner import lie_about_shards, suppress_class
from mpisign.errors import NaNError
from mpisign.study import tasks
from mpisign.study.attacks import hostile
from mpisign.study.cell import Cell
from mpisign.study.code_length import CodeLength
from mpisign.study.compression import compressor, groups_of
from mpisign.study.tasks.base import Named, Task
from mpisign.training.errors import SettingsError

#: What lying owners suppress: its row of the output layer is at the end, as is the last shard.
LAST_CLASS = 9
_OPTIMIZERS = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}


@dataclass
class Trained:
    """What one rank ended with. ``bits``: its messages' code length over all steps.

    Only rank 0 evaluates. ``curve``: step, metric on the test part, mean training loss of rank 0
    since the last point. ``more``: of ``Task.more``. ``diverged``: the step at which gradients or
    parameters were no longer finite.
    """

    parameters: int
    steps: int
    digest: str = ""
    bits: int = 0
    validation: float | None = None
    test: float | None = None
    diverged: int | None = None
    curve: list[tuple[int, float | None, float | None]] = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)


def check_optimizer(cell: Cell) -> None:
    """Raises SettingsError for options that the optimizer does not know; makes none.

    The first optimizer that a process makes loads torch's compiler: seconds.
    """
    try:
        inspect.signature(_OPTIMIZERS[cell.optimizer]).bind(
            [], lr=cell.lr, **cell.optimizer_options
        )
    except TypeError as error:
        raise SettingsError(f"optimizer_options of {cell.optimizer!r}: {error}") from error


def optimizer(cell: Cell, named: Named) -> torch.optim.Optimizer:
    """The torch optimizer of ``cell``."""
    return _OPTIMIZERS[cell.optimizer](  # type: ignore[no-any-return, operator]
        [p for _, p in named], lr=cell.lr, **cell.optimizer_options
    )


def train(comm: mpisign.Communicator, cell: Cell) -> Trained:
    """Trains this rank's replica to the end, or until it diverges. Collective."""
    groups = groups_of(cell, comm.rank)
    task, sends = tasks.build(cell, comm.rank, groups), compressor(cell, groups)
    length = CodeLength()
    stepping = mpisign.DistributedOptimizer(
        optimizer(cell, task.named),
        task.named,
        comm=comm,
        compression=length.of(sends),
        seed=cell.seed,
        byzantine_f=cell.byzantine_f,
        algorithm=cell.algorithm,  # type: ignore[arg-type]
        skip=None if cell.skip == "none" else cell.skip,
    )
    spoil = hostile(cell, comm, task, sends)
    if comm.rank >= comm.size - cell.lying_owners:
        lie_about_shards(stepping, suppress_class(stepping, LAST_CLASS))
    lengths = [p.numel() for _, p in task.named]
    # Within a round of local steps ranks hold parameters of their own: it ends, then is looked at.
    steps = max(1, task.steps // sends.local_steps) * sends.local_steps
    marks = _marks(steps, cell.evaluations, sends.local_steps)
    trained = Trained(parameters=sum(lengths), steps=steps)
    loss, since = torch.zeros(()), 0
    for step in range(steps):
        for group in stepping.param_groups:
            group["lr"] = cell.rate(step, steps)
        stepping.zero_grad()
        loss, since = loss + task.backward(step), since + 1
        if spoil is not None:
            spoil(p for _, p in task.named)
        try:
            stepping.step()
        except NaNError:  # the same on all ranks
            trained.diverged = step
            break
        length.unpacked(sends, lengths)
        if step + 1 in marks:
            if not all(bool(p.isfinite().all()) for _, p in task.named):  # replicas are equal
                trained.diverged = step
                break
            if comm.rank == 0:
                _evaluate(trained, task, step + 1, float(loss) / since)
            loss, since = torch.zeros(()), 0
    if comm.rank == 0 and trained.diverged is None:
        trained.more = task.more()
    trained.bits, trained.digest = length.bits, digest(task.named)
    return trained


def _marks(steps: int, many: int, every: int) -> set[int]:
    """After which steps to evaluate: about ``many``, the last one among them."""
    rounds = steps // every
    return {max(1, round(rounds * (i + 1) / many)) * every for i in range(many)}


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
