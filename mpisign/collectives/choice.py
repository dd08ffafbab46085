"""Which algorithm a vote takes: what the caller said, or the cheapest by the measured costs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from mpisign.collectives.allgather_vote import allgather_vote
from mpisign.collectives.alltoall_vote import alltoall_vote
from mpisign.collectives.hierarchical_vote import hierarchical_vote, vote_of_votes
from mpisign.collectives.replicated_vote import replicated_vote
from mpisign.collectives.vote_task import VoteTask
from mpisign.engine.header import Header
from mpisign.errors import CollectiveError
from mpisign.transports.base import Steps

if TYPE_CHECKING:
    from mpisign.engine.engine import Engine
    from mpisign.transports.tagged import TaggedTransport

Algorithm = Callable[["TaggedTransport", VoteTask], Steps[None]]
_ALLGATHER_BYTES = 1 << 14  # where nothing is measured: below, latency costs more than bytes


def choose(engine: Engine, size: int, task: VoteTask, header: Header) -> Algorithm:
    """The algorithm for an agreed header: agreed values decide alone, so all ranks take it.

    Raises CollectiveError if the communicator does not know its nodes, or is too small for f.
    """
    if header.byzantine_f and header.device != "cpu":
        raise CollectiveError(f"{header.operation}: byzantine_f needs arrays in host memory")
    name: str = header.algorithm
    if task.groups is not None and name not in ("auto", "allgather", "alltoall"):
        raise CollectiveError(
            f"{header.operation}: groups vote by algorithm='auto', 'allgather' or 'alltoall', "
            f"got {name!r}"
        )
    f = header.byzantine_f
    if f:
        if name not in ("auto", "alltoall"):
            raise CollectiveError(
                f"{header.operation}: byzantine_f={f} needs algorithm='alltoall' or 'auto', "
                f"got {name!r}"
            )
        if size < 2 * f + 1:
            raise CollectiveError(
                f"{header.operation}: byzantine_f={f} needs at least {2 * f + 1} ranks, got {size}"
            )
        return functools.partial(replicated_vote, f=f)
    if name == "auto":
        name = _cheapest(engine, size, task)
    if name == "allgather":
        return allgather_vote
    if name == "alltoall":
        return alltoall_vote
    if engine.nodes is None:
        raise CollectiveError(
            f"{header.operation}: algorithm={name!r} needs a Communicator, which finds nodes"
        )
    vote = hierarchical_vote if name == "hierarchical" else vote_of_votes
    return functools.partial(vote, nodes=engine.nodes)


def _cheapest(engine: Engine, size: int, task: VoteTask) -> str:
    k, kd, nbytes = task.k, task.kd, task.nbytes
    if size <= 2:
        return "allgather"  # which receives no more than alltoall, in one exchange
    if engine.costs is None or engine.nodes is None:
        return "allgather" if (size - 1) * k * nbytes <= _ALLGATHER_BYTES else "alltoall"
    # Every rank counts with the same node, or they would choose differently.
    costs, node = engine.costs, min(map(len, engine.nodes))
    seconds = {
        "allgather": costs.allgather(nbytes, k, node, size),
        "alltoall": costs.alltoall(nbytes, k, kd, node, size),
    }
    if node > 1 and len(engine.nodes) > 1 and task.groups is None:
        nodes = len(engine.nodes)
        seconds["hierarchical"] = costs.hierarchical(nbytes, k, kd, node, nodes)
    return min(seconds, key=seconds.__getitem__)
