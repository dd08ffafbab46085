"""One cell on simulated ranks or on those of the job, and what is recorded of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

import mpisign
from mpisign.attacks.owner import lie_about_shards, suppress_class
from mpisign.experiments import compression, loop, tasks
from mpisign.experiments.cell import Cell
from mpisign.experiments.code_length import CodeLength
from mpisign.experiments.hostile import Hostile
from mpisign.experiments.world import World
from mpisign.transports import threads

#: What lying owners suppress: its row of the output layer is at the end, as is the last shard.
LAST_CLASS = 9


def train(comm: mpisign.Communicator, cell: Cell) -> tuple[loop.Trained, int]:
    """Trains this rank's replica to the end, or until it diverges. Collective.

    Returns also the code length of its messages in bits.
    """
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
    done = loop.train(
        cell,
        task,
        stepping,
        hostile,
        sorted(marks),
        comm.rank,
        stepped=lambda step: length.unpacked(sends, lengths),
    )
    return done, length.bits


def simulated(cell: Cell) -> dict[str, Any]:
    """The result of ``cell`` by ranks that are threads of this process."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    mpisign.stats().reset()
    ranks = threads.run(cell.ranks, train, cell)
    sent = mpisign.stats().as_dict()["exchange"]["sent"] / cell.ranks
    bits = sum(bits for _, bits in ranks) / cell.ranks
    digests = [done.digest for done, _ in ranks]
    return _result(ranks[0][0], digests, sent, bits, time.perf_counter() - start)


def real(cell: Cell, world: World, comm: mpisign.Communicator) -> dict[str, Any]:
    """The result of ``cell`` by all ranks of ``world``, valid on rank 0. Collective."""
    start = time.perf_counter()
    mpisign.stats().reset()
    own, bits = train(comm, cell)
    totals = [mpisign.stats().as_dict()["exchange"]["sent"], bits]
    sent, bits = world.gather(np.array(totals, dtype=np.float64)).mean(axis=0).tolist()
    digests = world.gather_digests(own.digest)
    return _result(own, digests, sent, bits, time.perf_counter() - start)


def _result(
    first: loop.Trained, digests: Sequence[str], sent: float, bits: float, seconds: float
) -> dict[str, Any]:
    """``sent``: bytes over all steps, headers and copies; ``bits``: code length, each of a rank."""
    if len(set(digests)) != 1 and first.diverged is None:
        raise RuntimeError(f"replicas differ at the end: {digests}")
    steps = first.steps if first.diverged is None else first.diverged + 1
    return {
        "test": _short(first.test),
        "validation": _short(first.validation),
        "diverged": first.diverged,
        "steps": first.steps,
        "parameters": first.parameters,
        "sent": round(sent / steps, 1),
        "bits": round(bits / steps / first.parameters, 4),
        "curve": [(p.step, _short(p.test), _short(p.mean)) for p in first.curve],
        **first.more,
        "digest": digests[0],
        "seconds": round(seconds, 2),
    }


def _short(value: float | None) -> float | None:
    """Six significant digits."""
    return None if value is None else float(f"{value:.6g}")
