"""A flat gradient's vote, whole or shard by shard: for FSDP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mpisign import census, planes, policies
from mpisign.backend import arrays
from mpisign.collectives.majority_vote import vote
from mpisign.collectives.plan import Plan
from mpisign.collectives.shard_vote import shard_vote
from mpisign.collectives.vote_task import Planes, VoteTask
from mpisign.compressors import Compressor
from mpisign.compressors.base import PackContext
from mpisign.engine.engine import Engine
from mpisign.engine.header import SHORT_ABOVE, Header
from mpisign.exchange.buckets import BucketLayout
from mpisign.exchange.optimizer_options import options_of_steppers
from mpisign.stats import stage, stats
from mpisign.transports.base import Steps
from mpisign.transports.tagged import TaggedTransport


class _FlatTask(VoteTask):
    """The vote on one flat gradient, packed before anything is sent."""

    target: torch.Tensor
    first = 0  # byte of the planes that the target begins at

    def like_that_of(self, plan: Plan) -> _FlatTask:
        """This task with what ranks agreed on when they made the plan."""
        self.agree(plan.task.weights, plan.transport.size)
        self.raises = plan.task.raises
        return self

    def release(self) -> None:
        """Lets go of the gradient and its planes; the plan keeps the task."""
        del self.target
        self.planes = None

    def write(self, a: int, b: int, result: Planes) -> None:
        flat = self.target.detach().view(-1)
        rows = torch.from_numpy(result if len(result) == 2 else result[0]).to(flat.device)
        planes.unpack(rows, out=flat[8 * (a - self.first) : 8 * (b - self.first)])


def flat_vote(
    function: str,
    engine: Engine,
    compressor: Compressor,
    grad: torch.Tensor,
    output: torch.Tensor | None,
    *,
    seed: int,
    step: int,
    algorithm: policies.Algorithm,
    optimizers: Sequence[torch.optim.Optimizer] = (),
) -> None:
    """The vote on ``grad`` into itself, or this rank's shard of it into ``output``. Collective.

    The planes have a tensor for each shard, or one if every rank needs all: see ``BucketLayout``.
    On a GPU planes are packed and unpacked there; they alone are copied to the host and back.
    ``optimizers``: whose options must be equal on all ranks.
    """
    operation = "bucket_vote" if output is None else "shard_vote"

    def make(number: int, step: int) -> Any:
        task, header = _pack(function, engine, compressor, grad, output, seed, step, algorithm)
        header.settings = options_of_steppers(compressor, optimizers)

        def shard(wire: TaggedTransport) -> Steps[None]:
            yield from engine.headers(wire, header, function)
            yield from shard_vote(wire, task)

        def whole(wire: TaggedTransport) -> Steps[None]:
            key, used = (function, header.terms(), repr(task.groups)), None
            plan = engine.plans.take(key)
            if plan is not None and wire.size <= SHORT_ABOVE:
                plan.task = task.like_that_of(plan)
                if (yield from plan.run(engine, wire, number, step, header.settings)):
                    task.release()
                    return
            try:
                agreed = yield from engine.headers(wire, header, function)
                used = yield from vote(engine, wire, task, agreed, number, plan)
            finally:
                task.release()
                engine.plans.give_back(key, plan, used)

        return whole if output is None else shard

    engine.start(function, operation, step, make).wait()


def target_of(
    function: str, grad: torch.Tensor, output: torch.Tensor | None, size: int
) -> tuple[torch.Tensor, arrays.View, arrays.View, int]:
    """What is written to, the views of ``grad`` and of that, and how many such parts ``grad`` has.

    ValueError where they do not fit among ``size`` ranks.
    """
    target = grad if output is None else output
    g = arrays.view_floats(function, "grad", grad)
    t = arrays.view_floats(function, "output", target, writable=True)
    parts = 1 if output is None else size
    if not (g.contiguous and t.contiguous) or parts * t.length != g.length:
        raise ValueError(
            f"{function}: output must be contiguous and one of {parts} equal parts of "
            f"grad, got {t.shape} for {g.shape}: is the state's process group the model's?"
        )
    return target, g, t, parts


def _pack(
    function: str,
    engine: Engine,
    c: Compressor,
    grad: torch.Tensor,
    output: torch.Tensor | None,
    seed: int,
    step: int,
    algorithm: policies.Algorithm,
) -> tuple[_FlatTask, Header]:
    rank, size = engine.transport.rank, engine.transport.size
    target, g, t, parts = target_of(function, grad, output, size)
    layout = BucketLayout([t.length] * parts)
    groups, stream = c.groups_of(size, engine.nodes), rank
    if groups is not None:  # members that compute the same vote the same
        stream = next(i for i, group in enumerate(groups) if rank in group)
    k = policies.planes_up(c.zeros, c.nan)
    rows = torch.zeros((k, layout.nbytes), dtype=torch.uint8, device=grad.device)
    with stage("pack"):
        nans = c.pack(
            grad.detach().reshape(parts, -1).unbind(),
            [{} for _ in range(parts)],
            rows if k == 2 else rows[0],
            layout.offsets,
            PackContext(seed, step, stream),
        )
    if census.every and step % census.every == 0:
        stats().votes.add_gradient(grad)
    task = _FlatTask(layout.length, k, c.ties, seed, step, groups)
    task.planes = rows.cpu().numpy()
    task.nans = int(nans)
    task.target = target
    task.first = 0 if output is None else rank * (layout.nbytes // parts)
    header = Header(
        "bucket_vote" if output is None else "shard_vote",
        dtype=g.dtype,
        zeros=c.zeros,
        nan=c.nan,
        ties=c.ties,
        step=step,
        tensor=layout.identity([""] * parts),
        length=layout.length,
        seed=seed,
        nans=task.nans,
        algorithm=algorithm,
    )
    return task, header
