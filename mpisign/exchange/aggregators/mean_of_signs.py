"""The mean of all ranks' signs on a bucket: count planes take the place of a vote's."""

from __future__ import annotations

from typing import ClassVar

import torch

from mpisign.collectives.counts import CountTask
from mpisign.collectives.vote_task import Planes
from mpisign.engine.header import Header
from mpisign.exchange.aggregators.vote import BucketTask, VoteAggregator


class _BucketCounts(CountTask, BucketTask):
    means: dict[int, torch.Tensor]  # of slots whose gradients are not contiguous float32

    def reset(self, seed: int, step: int) -> None:
        super().reset(seed, step)
        self.means = {}
        self.in_place = False

    def put(self, i: int, first: int, votes: Planes) -> None:
        grad = self.aggregator.slots[i].target()
        part = slice(8 * first, 8 * (first + votes.shape[1]))
        if grad.dtype == torch.float32 and grad.is_contiguous():
            self.mean(votes, grad.view(-1)[part])
            return
        whole = self.means.get(i)
        if whole is None:
            whole = torch.empty(grad.shape, dtype=torch.float32, device=grad.device)
            self.means[i] = whole
        self.mean(votes, whole.view(-1)[part])


class MeanOfSignsAggregator(VoteAggregator):
    """(1/p) sum over ranks of their signs; a coordinate that abstains counts 0 among p.

    Wire and arithmetic: as ``Communicator.mean_of_signs``, with its algorithms.
    """

    operation: ClassVar[str] = "bucket_mean_of_signs"
    task_type = _BucketCounts
    _ALGORITHMS: ClassVar = ("auto", "allgather", "alltoall")

    def begin(self, header: Header, message: int) -> None:
        if header.algorithm not in self._ALGORITHMS:
            names = ", ".join(repr(a) for a in self._ALGORITHMS)
            raise ValueError(
                f"algorithm must be one of {names} for means of signs, got {header.algorithm!r}"
            )
        super().begin(header, message)

    def _complete(self) -> None:
        assert isinstance(self.task, _BucketCounts)
        for i, mean in self.task.means.items():
            self.slots[i].target().copy_(mean)
        self.task.means = {}
