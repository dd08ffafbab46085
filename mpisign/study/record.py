"""Running one cell, by simulated ranks or by those of the job, and what is kept of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

import mpisign
from mpisign.study.cell import Cell
from mpisign.study.train import Trained, train
from mpisign.training.world import World
from mpisign.transports import threads


def simulated(cell: Cell) -> dict[str, Any]:
    """The result of ``cell`` by ranks that are threads of this process."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    mpisign.stats().reset()
    ranks = threads.run(cell.ranks, train, cell)
    sent = mpisign.stats().as_dict()["exchange"]["sent"] / cell.ranks
    bits = sum(r.bits for r in ranks) / cell.ranks
    return _result(ranks[0], [r.digest for r in ranks], sent, bits, time.perf_counter() - start)


def real(cell: Cell, world: World, comm: mpisign.Communicator) -> dict[str, Any]:
    """The result of ``cell`` by all ranks of ``world``: collective, told on rank 0."""
    start = time.perf_counter()
    mpisign.stats().reset()
    own = train(comm, cell)
    totals = [mpisign.stats().as_dict()["exchange"]["sent"], own.bits]
    sent, bits = world.gather(np.array(totals, dtype=np.float64)).mean(axis=0).tolist()
    digest = np.frombuffer(bytes.fromhex(own.digest), dtype=np.uint8)
    digests = [row.tobytes().hex() for row in world.gather(digest)]
    return _result(own, digests, sent, bits, time.perf_counter() - start)


def _result(
    first: Trained, digests: Sequence[str], sent: float, bits: float, seconds: float
) -> dict[str, Any]:
    """``sent``: bytes over all steps, headers and copies; ``bits``: code length, each of a rank."""
    if len(set(digests)) != 1 and first.diverged is None:
        raise RuntimeError(f"replicas differ at the end: {digests}")
    steps = first.steps if first.diverged is None else first.diverged + 1
    return {
        "test": first.test,
        "validation": first.validation,
        "diverged": first.diverged,
        "steps": first.steps,
        "parameters": first.parameters,
        "sent": round(sent / steps, 1),
        "bits": round(bits / steps / first.parameters, 4),
        "curve": first.curve,
        **first.more,
        "digest": digests[0],
        "seconds": round(seconds, 2),
    }
