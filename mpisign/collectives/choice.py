"""Which algorithm a vote takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from mpisign.collectives.allgather_vote import allgather_vote
from mpisign.collectives.alltoall_vote import alltoall_vote
from mpisign.collectives.ballot import Ballot
from mpisign.collectives.header import Header
from mpisign.collectives.line import Line
from mpisign.transports.base import Steps

if TYPE_CHECKING:
    from mpisign.collectives.vote import Channel

Algorithm = Callable[[Line, Ballot], Steps[None]]
_ALLGATHER_BYTES = 1 << 14


def choose(channel: Channel, line: Line, ballot: Ballot, header: Header) -> Steps[Algorithm]:
    """The algorithm for an agreed header; the same on every rank."""
    name = header.algorithm
    if name == "auto":
        small = (line.size - 1) * ballot.k * ballot.nbytes <= _ALLGATHER_BYTES
        name = "allgather" if line.size <= 2 or small else "alltoall"
    return {"allgather": allgather_vote, "alltoall": alltoall_vote}[name]
    yield
