"""The mean of all ranks' signs on a bucket: count planes come down where a vote's did."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch

from mpisign import arrays
from mpisign.collectives.agreement import Agreed
from mpisign.collectives.ballot import Planes
from mpisign.collectives.count_ballot import CountBallot
from mpisign.collectives.header import Header
from mpisign.collectives.line import Line
from mpisign.collectives.mean_of_signs import mean_of
from mpisign.collectives.vote import Channel
from mpisign.rounds.vote import VoteRound
from mpisign.transports.base import Steps


class MeanOfSignsRound(VoteRound):
    """(1/p) sum over ranks of their signs; a coordinate that abstains counts 0 among p.

    Wire and arithmetic: as ``mpisign.mean_of_signs``, whose algorithms are all it has.
    """

    operation: ClassVar[str] = "bucket_mean_of_signs"
    _ALGORITHMS: ClassVar = ("auto", "allgather", "alltoall")

    def __init__(self, *args: Any, **keys: Any) -> None:
        super().__init__(*args, **keys)
        b = self.ballot
        self.ballot: CountBallot = CountBallot(
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
        self, channel: Channel, line: Line, agreed: Agreed, number: int, anywhere: Any
    ) -> Steps[None]:
        if agreed.header.algorithm == "auto":
            # allgather's k B (p - 1) against alltoall's (k + kd) B (p - 1) / p
            b = self.ballot
            name: Any = "allgather" if b.k * self.size <= b.k + b.kd else "alltoall"
            agreed = replace(agreed, header=replace(agreed.header, algorithm=name))
        yield from super().steps(channel, line, agreed, number, anywhere)
        for i, mean in self._means.items():
            self.members[i].target().copy_(mean)

    def _put(self, i: int, first: int, counts: Planes) -> None:
        """The mean behind counts (kd, n) from byte ``first`` on as the gradient of member ``i``."""
        grad = self.members[i].target()
        part = slice(8 * first, 8 * (first + counts.shape[1]))
        if grad.dtype == torch.float32 and arrays.view("step", "grad", grad).contiguous:
            mean_of(counts, self.ballot, grad.view(-1)[part])
            return
        whole = self._means.get(i)
        if whole is None:
            whole = self._means[i] = torch.empty(
                grad.shape, dtype=torch.float32, device=grad.device
            )
        mean_of(counts, self.ballot, whole.view(-1)[part])
