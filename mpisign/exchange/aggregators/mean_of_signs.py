"""The mean of all ranks' signs on a bucket: count planes come down where a vote's did."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch

from mpisign.backend import arrays
from mpisign.collectives.count_task import CountTask
from mpisign.collectives.mean_of_signs import mean_of
from mpisign.collectives.vote_task import Planes
from mpisign.engine.agreement import Agreed
from mpisign.engine.engine import Engine
from mpisign.engine.header import Header
from mpisign.exchange.aggregators.vote import VoteAggregator
from mpisign.transports.base import Steps
from mpisign.transports.tagged import TaggedTransport


class MeanOfSignsAggregator(VoteAggregator):
    """(1/p) sum over ranks of their signs; a coordinate that abstains counts 0 among p.

    Wire and arithmetic: as ``mpisign.mean_of_signs``, whose algorithms are all it has.
    """

    operation: ClassVar[str] = "bucket_mean_of_signs"
    _ALGORITHMS: ClassVar = ("auto", "allgather", "alltoall")

    def __init__(self, *args: Any, **keys: Any) -> None:
        super().__init__(*args, **keys)
        b = self.task
        self.task: CountTask = CountTask(
            length=b.length,
            k=b.k,
            ties=b.ties,
            seed=b.seed,
            step=b.step,
            pack=b.pack,
            unpack=b.unpack,
            size=self.size,
        )
        self._means: dict[int, torch.Tensor] = {}

    def begin(self, header: Header, message: int) -> tuple[Header, Planes | None]:
        if header.algorithm not in self._ALGORITHMS:
            names = ", ".join(repr(a) for a in self._ALGORITHMS)
            raise ValueError(
                f"algorithm must be one of {names} for means of signs, got {header.algorithm!r}"
            )
        return super().begin(header, message)

    def steps(
        self, engine: Engine, wire: TaggedTransport, agreed: Agreed, number: int, anywhere: Any
    ) -> Steps[None]:
        if agreed.header.algorithm == "auto":
            # allgather's k B (p - 1) against alltoall's (k + kd) B (p - 1) / p
            b = self.task
            name: Any = "allgather" if b.k * self.size <= b.k + b.kd else "alltoall"
            agreed = replace(agreed, header=replace(agreed.header, algorithm=name))
        yield from super().steps(engine, wire, agreed, number, anywhere)
        for i, mean in self._means.items():
            self.members[i].target().copy_(mean)

    def _put(self, i: int, first: int, counts: Planes) -> None:
        """The mean behind counts (kd, n) from byte ``first`` on as the gradient of member ``i``."""
        grad = self.members[i].target()
        part = slice(8 * first, 8 * (first + counts.shape[1]))
        if grad.dtype == torch.float32 and arrays.view("step", "grad", grad).contiguous:
            mean_of(counts, self.task, grad.view(-1)[part])
            return
        whole = self._means.get(i)
        if whole is None:
            whole = self._means[i] = torch.empty(
                grad.shape, dtype=torch.float32, device=grad.device
            )
        mean_of(counts, self.task, whole.view(-1)[part])
