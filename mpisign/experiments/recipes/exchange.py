"""Gradient, exchange, step: the training of every compressor."""

from __future__ import annotations

import mpisign
from mpisign.attacks.owner import lie_about_shards, suppress_class
from mpisign.experiments import compression, loop, tasks
from mpisign.experiments.cell import Cell
from mpisign.experiments.compression import CodeLength
from mpisign.experiments.errors import SettingsError
from mpisign.experiments.hostile import Hostile

#: What lying owners suppress: its row of the output layer is at the end, as is the last shard.
LAST_CLASS = 9


def train(comm: mpisign.Communicator, cell: Cell) -> tuple[loop.Trained, int]:
    """Trains this rank's replica to the end, or until it diverges. Collective."""
    if cell.recipe_options:
        raise SettingsError(f"recipe_options of exchange: expected none, got {cell.recipe_options}")
    groups = compression.groups_of(cell, comm.rank)
    task, sends = tasks.build(cell, comm.rank, groups), compression.compressor(cell, groups)
    length = CodeLength()
    stepping = loop.distributed(cell, task.named, comm, length.of(sends))
    # Of one batch hostile ranks make the same poisoned one, and own a group that they are most of.
    alike = groups is not None or "backdoor" in (cell.attack or "")
    hostile = Hostile(cell, comm, task, sends, groups, alike=alike)
    if comm.rank >= comm.size - cell.lying_owners:
        lie_about_shards(stepping, suppress_class(stepping, LAST_CLASS))
    # Within a round of local steps ranks hold parameters of their own: only its end is evaluated.
    rounds, parts = max(1, task.steps // sends.local_steps), cell.evaluations
    marks = {max(1, round(rounds * (i + 1) / parts)) * sends.local_steps for i in range(parts)}
    lengths = [p.numel() for _, p in task.named]

    there = mpisign.takes_part(stepping)

    def stepped(step: int) -> None:
        nonlocal there
        if there:
            length.unpacked(sends, lengths)
        there = mpisign.takes_part(stepping)

    steps = sorted(marks)
    done = loop.train(cell, task, stepping, hostile, steps, comm.rank, stepped=stepped)
    return done, length.bits
