"""A flat gradient's plain average, whole or shard by shard: FSDP's first steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mpisign.compressors import Compressor
from mpisign.engine.engine import Engine
from mpisign.engine.header import Header
from mpisign.exchange.flat_vote import target_of
from mpisign.exchange.optimizer_options import options_of_steppers
from mpisign.stats import stage
from mpisign.transports.base import Steps
from mpisign.transports.tagged import TaggedTransport


def flat_average(
    function: str,
    engine: Engine,
    compressor: Compressor,
    grad: torch.Tensor,
    output: torch.Tensor | None,
    *,
    warmup_steps: int,
    step: int,
    optimizers: Sequence[torch.optim.Optimizer] = (),
) -> None:
    """The ranks' mean of ``grad``, in float32, into itself or this rank's shard into ``output``.

    Collective. Wire: shard s of p equal parts goes to rank s, float32 little-endian, which adds up
    by rank and divides by p; where ``output`` is None every rank sends its mean to all. Under
    nan="raise" NaN raises on all ranks. ``compressor``: what follows. ``optimizers``: whose options
    must be equal on all ranks.
    """

    def make(number: int, step: int) -> Any:
        target, g, *_ = target_of(function, grad, output, engine.transport.size)
        flat = grad.detach().to("cpu", torch.float32).contiguous().view(-1).numpy()
        nans = int(np.isnan(flat).sum())
        header = Header(
            "warm_up",
            dtype=g.dtype,
            nan=compressor.nan,
            step=step,
            length=g.length,
            settings=options_of_steppers(compressor, optimizers) ^ warmup_steps,
            nans=nans,
        )

        def steps(wire: TaggedTransport) -> Steps[None]:
            yield from engine.headers(wire, header, function)
            yield from _average(wire, flat, target, output is None)

        return steps

    engine.start(function, "warm_up", step, make).wait()


def _average(wire: TaggedTransport, flat: Any, target: torch.Tensor, whole: bool) -> Steps[None]:
    p, n = wire.size, flat.size
    bounds = [n * r // p for r in range(p + 1)]
    shards = [slice(a, b) for a, b in zip(bounds, bounds[1:], strict=False)]
    own = flat[shards[wire.rank]]
    rows = np.empty((p, own.size), dtype=np.float32)
    rows[wire.rank] = own
    sends = [(r, flat[shards[r]].view(np.uint8)) for r in wire.others]
    yield wire.exchange(sends, [(r, rows[r].view(np.uint8)) for r in wire.others])
    with stage("vote"):
        mean = np.zeros(own.size, dtype=np.float32)
        for row in rows:
            mean += row
        mean /= np.float32(p)
    if whole:
        result = np.empty(n, dtype=np.float32)
        yield wire.allgather(mean.view(np.uint8), [result[s].view(np.uint8) for s in shards])
        mean = result
    target.copy_(torch.from_numpy(mean).view(target.shape))
