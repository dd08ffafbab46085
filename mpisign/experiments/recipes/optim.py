"""Training by ``mpisign.optim``: ``recipe_options`` name the optimizer and give its options."""

from __future__ import annotations

from typing import Any

import mpisign
from mpisign import optim
from mpisign.experiments import loop, tasks
from mpisign.experiments.cell import Cell
from mpisign.experiments.errors import SettingsError
from mpisign.experiments.hostile import Hostile
from mpisign.optim.base import CompressedOptimizer

_FP32, _BF16 = 32, 16  # bits


def train(comm: mpisign.Communicator, cell: Cell) -> tuple[loop.Trained, int]:
    """Trains this rank's replica to the end, or until it diverges. Collective.

    It is evaluated where ranks hold the same parameters: ``ZeroOneAdam`` by multiples of its
    longest interval.
    """
    task, options = tasks.build(cell, comm.rank, None), dict(cell.recipe_options)
    name = options.pop("optimizer", None)
    if name not in optim.__all__:
        known = ", ".join(optim.__all__)
        raise SettingsError(f"recipe_options.optimizer: expected one of {known}, got {name!r}")
    skip = None if cell.skip == "none" else cell.skip
    try:
        optimizer = getattr(optim, name)(
            task.named, lr=cell.lr, comm=comm, skip=skip, seed=cell.seed, **options
        )
    except (TypeError, ValueError) as error:
        raise SettingsError(f"recipe_options of {name!r}: {error}") from error
    every = options.get("local_step_clipper", 1)
    if task.steps % every:
        raise SettingsError(f"steps must be a multiple of local_step_clipper, got {task.steps}")
    parts, n = cell.evaluations, task.steps // every
    marks = sorted({max(1, round(n * (i + 1) / parts)) * every for i in range(parts)})
    length = _CodeLength(optimizer)
    hostile = Hostile(cell, comm, task)
    done = loop.train(cell, task, optimizer, hostile, marks, comm.rank, stepped=length.stepped)
    return done, length.bits


class _CodeLength:
    """Bits of one rank's messages so far: what is compressed counts its planes and scales."""

    def __init__(self, optimizer: CompressedOptimizer) -> None:
        self._optimizer, self._exchanges, self.bits = optimizer, 0, 0

    def stepped(self, step: int) -> None:
        """Books what the last step has sent, if it has."""
        exchange = self._optimizer.exchange_now()
        if exchange.steps == self._exchanges:
            return
        self._exchanges = exchange.steps
        for bucket in exchange.buckets:
            n, c = sum(bucket.layout.lengths), bucket.compressor
            self.bits += _FP32 * n if exchange.averaging else _compressed(c, n)


def _compressed(compressor: Any, n: int) -> int:
    if compressor.aggregate == "halves":
        return _BF16 * n
    planes = 2 if compressor.zeros == "abstain" else 1
    return planes * n + _FP32 * -(-n // (compressor.block or n))
