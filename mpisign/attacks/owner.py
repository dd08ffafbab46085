"""A rank that votes honestly and lies as the owner of its shard of the coordinates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mpisign import planes
from mpisign.backend import arrays
from mpisign.collectives.vote_task import VoteTask
from mpisign.communicator import Communicator
from mpisign.engine.engine import Engine
from mpisign.exchange.step_hooks import KEY

#: ``lie(stack, first, out)`` changes ``out``, uint8 (kd, b), the honest tally of ``stack``
#: (n, k, b), bytes [first, first + b) of the planes.
Lie = Callable[[Any, int, Any], None]
_FUNCTION = "lie_about_shards"


def lie_about_shards(of: Any, lie: Lie | None = None) -> None:
    """Makes this rank change every tally that it computes from now on. Not collective.

    Its own votes stay honest; headers and digests fit the lie. Under alltoall-vote all ranks accept
    it for d / p coordinates. With ``byzantine_f`` the rank is one of 2 f + 1 owners of as many
    shards, lies about each, and is identified. Where every rank tallies for itself (allgather) only
    its own replica changes, which the replica check detects. For experiments.

    Args:
        of: A Communicator, or an optimizer of ``mpisign.DistributedOptimizer``.
        lie: A ``Lie`` or a ``Suppression``. Default: ``opposite``.

    Raises:
        TypeError: ``of`` is neither.

    Example:
        >>> import numpy as np, mpisign
        >>> from mpisign import simulation
        >>> def job(comm):
        ...     if comm.rank == 0:
        ...         lie_about_shards(comm)
        ...     x = np.ones(16, np.float32)
        ...     return mpisign.majority_vote(x, comm, algorithm="alltoall").tolist()
        >>> simulation.run(2, job)[1] == [-1.0] * 8 + [1.0] * 8
        True
    """
    lie = opposite if lie is None else lie

    def bend(task: VoteTask, byzantine_f: int) -> None:
        task.lie = lie.within(task) if isinstance(lie, Suppression) else lie

    _engine(of).adversary = bend


def opposite(stack: Any, first: int, out: Any) -> None:
    """The lie that flips every result of the shard.

    Example:
        >>> out = np.zeros((1, 2), np.uint8)
        >>> opposite(None, 0, out)
        >>> out.tolist()
        [[255, 255]]
    """
    out[0] ^= 0xFF


class Suppression:
    """The lie that keeps a classifier from ever predicting ``label``.

    The coordinates of the label's weights and bias in this rank's shard are voted +1 in every step,
    so each step subtracts the rate from them: after ReLU the label's score falls, whatever the
    input.

    Args:
        optimizer: Of ``mpisign.DistributedOptimizer``; its last parameters are those of the output
            layer, weight (classes, hidden) and, if it has one, bias (classes,).
        label: The class, from 0.

    Attributes:
        coordinates: Number of such coordinates, in all ranks' shards together.

    Raises:
        ValueError: The parameters are others, or the layer has no such label.

    Example:
        >>> import mpisign, torch
        >>> from mpisign import simulation
        >>> def job(comm):
        ...     net = torch.nn.Linear(4, 3)
        ...     sgd = torch.optim.SGD(net.parameters(), lr=0.1)
        ...     return Suppression(mpisign.DistributedOptimizer(sgd, comm=comm), 0).coordinates
        >>> simulation.run(1, job)  # 4 weights and a bias
        [5]
    """

    def __init__(self, optimizer: Any, label: int) -> None:
        exchange = _hooks(optimizer).exchange
        last = _output_layer([p for g in optimizer.param_groups for p in g["params"]], label)
        self._masks: dict[int, Any] = {}  # by the bucket's length in coordinates
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
        """The lie about one bucket's vote, None for buckets without such coordinates."""
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
        """Raises NotImplementedError: a lie needs the bucket, see ``within``."""
        raise NotImplementedError(f"{type(self).__name__}: give it to lie_about_shards")


def suppress_class(optimizer: Any, label: int) -> Suppression:
    """``Suppression(optimizer, label)``."""
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
    """``mask`` on the device of ``out``."""
    if isinstance(out, np.ndarray):
        return mask
    if arrays.is_torch(out):
        import torch

        return torch.from_numpy(mask).to(out.device)
    import cupy

    return cupy.asarray(mask)


def _hooks(optimizer: Any) -> Any:
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
