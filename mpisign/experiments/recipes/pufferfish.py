"""The full model for a share of the steps, then the same model of low rank (arXiv 2103.03936)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mpisign
from mpisign.experiments import compression, loop, tasks
from mpisign.experiments.cell import Cell
from mpisign.experiments.compression import CodeLength
from mpisign.experiments.errors import SettingsError
from mpisign.experiments.hostile import Hostile


@dataclass(frozen=True)
class _Options:
    """``full``: the share of the steps that the full model takes: 0 none, 1 all."""

    full: float = 0.1
    rank_ratio: float = 0.25
    keep: tuple[str, ...] = ()
    first: int = 1
    last: int = 1
    min_size: int = 1024
    states: Any = "projected"

    @property
    def of_factorize(self) -> dict[str, Any]:
        """Arguments."""
        names = ("rank_ratio", "keep", "first", "last", "min_size", "states")
        return {name: getattr(self, name) for name in names}


def train(comm: mpisign.Communicator, cell: Cell) -> tuple[loop.Trained, int]:
    """Trains this rank's replica to the end, or until it diverges. Collective."""
    try:
        options = _Options(**cell.recipe_options)
    except TypeError as error:
        raise SettingsError(f"recipe_options of pufferfish: {error}") from error
    if not 0 <= options.full <= 1:
        raise SettingsError(f"full: expected a share from 0 to 1, got {options.full!r}")
    task, sends = tasks.build(cell, comm.rank), compression.compressor(cell)
    if task.net is None or cell.adversaries or cell.lying_owners:
        raise SettingsError(f"pufferfish: expected honest ranks and a network, got {cell.task}")
    net, length, steps = task.net, CodeLength(), task.steps
    switch, full = round(options.full * steps), sum(p.numel() for _, p in task.named)
    if not switch:
        mpisign.lowrank.factorize(net, comm=comm, **options.of_factorize)
        task.named[:] = net.named_parameters()
    stepping = loop.distributed(cell, task.named, comm, length.of(sends))

    def stepped(step: int) -> None:
        length.unpacked(sends, [p.numel() for _, p in task.named])
        if step == switch < steps:
            mpisign.lowrank.factorize(net, optimizer=stepping, **options.of_factorize)
            task.named[:] = net.named_parameters()

    parts = cell.evaluations
    marks = sorted({max(1, round(steps * (i + 1) / parts)) for i in range(parts)})
    hostile = Hostile(cell, comm, task, sends)
    done = loop.train(cell, task, stepping, hostile, marks, comm.rank, stepped=stepped)
    done.parameters = full  # bits of a message are counted in coordinates of the full model
    done.more |= {"parameters_at_the_end": sum(p.numel() for _, p in task.named)}
    return done, length.bits
