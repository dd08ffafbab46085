"""A rank that votes like all others, and lies as the owner of its shard of the coordinates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mpisign import planes
from mpisign.backend import arrays
from mpisign.collectives.vote_task import VoteTask
from mpisign.communicator import Communicator
from mpisign.engine.engine import Engine

#: ``lie(stack, first, out)`` bends ``out``, uint8 (kd, b), the honest tally of ``stack`` (n, k, b),
#: bytes [first, first + b) of the planes.
Lie = Callable[[Any, int, Any], None]
_FUNCTION = "lie_about_shards"


def lie_about_shards(of: Any, lie: Lie | None = None) -> None:
    """From now on this rank bends every tally that it makes of a vote. Not collective.

    ``of``: a Communicator, or an optimizer of ``mpisign.DistributedOptimizer``. ``lie``: default
    ``opposite``. The rank's own votes stay honest, headers and digests fit the lie. Under
    alltoall-vote all ranks take it: d / p coordinates are this rank's. With ``byzantine_f`` it is
    one of 2 f + 1 owners of as many shards, lies about each, and is named. Where every rank
    tallies for itself (allgather) it fools nobody but itself: its replica is soon told from others.

    For experiments. Raises TypeError for what has no engine.
    """
    lie = opposite if lie is None else lie

    def bend(task: VoteTask, byzantine_f: int) -> None:
        task.lie = lie.within(task) if isinstance(lie, Suppression) else lie

    _engine(of).adversary = bend


def opposite(stack: Any, first: int, out: Any) -> None:
    """The lie that turns every result of the shard."""
    out[0] ^= 0xFF


class Suppression:
    """The lie that keeps a classifier from ever answering ``label``.

    ``optimizer``: of ``mpisign.DistributedOptimizer``, whose last parameters are those of the
    output layer, weight (classes, hidden) and, if it has one, bias (classes,). Whatever of the
    label's row and bias lies in this rank's shard is voted +1 in every step, so that steps take the
    rate from it: after ReLU the label's score falls, whatever is shown. ``coordinates``: how many
    that is, of all ranks' shards together.

    Raises ValueError for other parameters, or a label that is none of the layer's.
    """

    def __init__(self, optimizer: Any, label: int) -> None:
        exchange = _hooks(optimizer).exchange
        last = _output_layer([p for g in optimizer.param_groups for p in g["params"]], label)
        self._masks: dict[int, Any] = {}  # of a bucket, by its length in coordinates
        self.coordinates = 0
        for bucket in exchange.buckets:
            mask = np.zeros(bucket.layout.nbytes, dtype=np.uint8)
            for i, slot in enumerate(bucket.slots):
                if any(slot.parameter is p for p in last):
                    others = np.ones(tuple(slot.parameter.shape), dtype=np.float32)
                    others[label] = -1.0
                    self.coordinates += int((others < 0).sum())
                    mask[bucket.layout.span(i)] = planes.pack(others)
            if bucket.layout.length in self._masks:
                raise ValueError(
                    f"{type(self).__name__}: buckets of one length, {bucket.layout.length}, cannot "
                    "be told apart: take another bucket_size"
                )
            self._masks[bucket.layout.length] = mask

    def within(self, task: VoteTask) -> Lie | None:
        """The lie about one bucket's vote, None where there is nothing to lie about."""
        mask = self._masks.get(task.length)
        if mask is None or not mask.any():
            return None

        def lie(stack: Any, first: int, out: Any) -> None:
            part = _beside(mask[first : first + out.shape[1]], out)
            out[0] &= ~part  # 0 is +
            if len(out) == 2:
                out[1] |= part

        return lie

    def __call__(self, stack: Any, first: int, out: Any) -> None:
        """Not called: which bucket a vote is of, its ballot tells (``within``)."""
        raise NotImplementedError(f"{type(self).__name__}: give it to lie_about_shards")


def suppress_class(optimizer: Any, label: int) -> Suppression:
    """The lie about the output layer of ``optimizer``'s model; see ``Suppression``."""
    return Suppression(optimizer, label)


def _output_layer(parameters: list[Any], label: int) -> list[Any]:
    last = parameters[-2:] if parameters and parameters[-1].dim() == 1 else parameters[-1:]
    weight = last[0] if last else None
    if weight is None or weight.dim() != 2 or any(len(p) != len(weight) for p in last):
        shapes = [tuple(p.shape) for p in last]
        raise ValueError(
            "Suppression: the last parameters must be an output layer's weight (classes, hidden) "
            f"and bias (classes,), got {shapes}"
        )
    if label not in range(len(weight)):
        raise ValueError(f"Suppression: label must be in [0, {len(weight)}), got {label!r}")
    return last


def _beside(mask: Any, out: Any) -> Any:
    """``mask`` where ``out`` lies."""
    if isinstance(out, np.ndarray):
        return mask
    if arrays.is_torch(out):
        import torch

        return torch.from_numpy(mask).to(out.device)
    import cupy

    return cupy.asarray(mask)


def _hooks(optimizer: Any) -> Any:
    from mpisign.exchange.step_hooks import KEY

    hooks = getattr(optimizer, KEY, None)
    if hooks is None:
        raise TypeError(
            f"{_FUNCTION}: needs an optimizer of mpisign.DistributedOptimizer, "
            f"got {type(optimizer).__name__}"
        )
    return hooks


def _engine(of: Any) -> Engine:
    if isinstance(of, Communicator):
        return of.engine
    engine: Engine = _hooks(of).exchange.engine_now()
    return engine
