"""vote_traffic: what a vote among ranks that do not exist would send and hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mpisign import policies
from mpisign.collectives import auto
from mpisign.collectives.costs import Costs
from mpisign.collectives.dry_run import Load, dry_run, dry_steps
from mpisign.collectives.hierarchy import grouped, hierarchy_of, levels_of
from mpisign.collectives.majority_vote import check_options
from mpisign.collectives.plan import exchange_nans
from mpisign.collectives.vote_task import VoteTask
from mpisign.engine.engine import Engine
from mpisign.engine.header import SHORT_ABOVE, Header
from mpisign.transports.base import Steps, Transport
from mpisign.transports.tagged import TaggedTransport

_FUNCTION = "vote_traffic"


@dataclass(frozen=True)
class VoteTraffic:
    """One rank's part in one ``majority_vote``.

    Args:
        algorithm: "allgather", "alltoall", "hierarchical" or "vote_of_votes".
        rank: whose part it is.
        chunks: how many times planes are cut; the exchanges of chunks overlap.
        rounds: exchanges that a chunk waits for, one after another.
        sends, receives: messages of the vote.
        sent, received: their bytes.
        sends_outside, sent_outside, received_outside: of these to and from other nodes.
        memory: bytes of buffers beyond gradient and result.
        agreement_sends, agreement_sent: messages and bytes of headers and of counts of NaN, one
            way; as many come.

    Example:
        >>> import mpisign
        >>> traffic = mpisign.vote_traffic(10**6, 4, algorithm="allgather")
        >>> traffic.sends, traffic.sent, traffic.agreement_sent
        (6, 375000, 1536)
    """

    algorithm: str
    rank: int
    chunks: int
    rounds: int
    sends: int
    receives: int
    sent: int
    received: int
    sends_outside: int
    sent_outside: int
    received_outside: int
    memory: int
    agreement_sends: int
    agreement_sent: int


def vote_traffic(
    length: int,
    size: int,
    *,
    algorithm: policies.Algorithm = "alltoall",
    zeros: policies.Zeros = policies.DEFAULT_ZEROS,
    nan: policies.Nan = policies.DEFAULT_NAN,
    ties: policies.Ties = policies.DEFAULT_TIES,
    nodes: Any = None,
    rank: int | None = None,
    message: int | None = None,
    costs: Costs | None = None,
) -> VoteTraffic:
    """What a rank of a majority vote sends, receives and holds, for ranks that need not exist.

    The collective itself runs, over a wire that counts what it is given and sends nothing, with
    memory that takes no room.

    Args:
        length: coordinates of float32 in host memory, contiguous.
        size: ranks.
        algorithm: as of ``majority_vote``; "auto" needs ``costs``.
        zeros, nan, ties: as of ``majority_vote``.
        nodes: as of ``Communicator``; default: all ranks on one node.
        rank: default: the busiest (the last owner of the largest groups), which sends and receives
            the most where all groups have one size, to a byte a message.
        message: a good size of messages on the wire, in bytes; the default is that of MPI.
        costs: what exchanges cost, in seconds.

    Returns:
        VoteTraffic.

    Raises:
        ValueError: an argument is none of these.

    Example:
        >>> import mpisign
        >>> flat = mpisign.vote_traffic(10**6, 1024)
        >>> tree = mpisign.vote_traffic(
        ...     10**6, 1024, algorithm="hierarchical", nodes=[r // 32 for r in range(1024)]
        ... )
        >>> flat.sends, flat.sent, tree.sends, tree.sent
        (2046, 250706, 279, 268727)
    """
    check_options(_FUNCTION, algorithm=algorithm, zeros=zeros, nan=nan, ties=ties, step=0)
    message = Transport.message if message is None else message
    for name, value, least in (("length", length, 0), ("size", size, 1), ("message", message, 1)):
        if type(value) is not int or value < least:
            raise ValueError(f"{_FUNCTION}: {name} must be an integer from {least}, got {value!r}")
    numbers = levels_of(_FUNCTION, nodes, size)
    hierarchy = hierarchy_of(tuple(map(grouped, numbers or [[0] * size])))
    rank = hierarchy.busiest if rank is None else rank
    if not 0 <= rank < size:
        raise ValueError(f"{_FUNCTION}: rank must be below {size}, got {rank}")
    k, kd = 2 if "abstain" in (zeros, nan) else 1, 2 if ties == "zero" else 1
    if algorithm == "auto":
        if costs is None:
            raise ValueError(f"{_FUNCTION}: algorithm='auto' needs costs")
        levels = len(hierarchy.partitions)
        choice = auto.cheapest(costs, hierarchy, levels, length, k, kd, message)
    else:
        choice = algorithm, len(hierarchy.partitions)
    task = VoteTask(length, k, ties, 0, 0)
    header = Header("majority_vote", length=length, algorithm=algorithm, nan=nan)
    near = frozenset(hierarchy.mates(rank))
    run = dry_run(auto.named(*choice, hierarchy), length, k, kd, rank, size, message, near)
    vote = Load()
    for load in (run.near, run.far):
        vote.add(load)
    pending = nan == "raise" and not task.short(message)
    agreement = _agreement(header, pending, rank, size)
    return VoteTraffic(
        choice[0],
        rank,
        run.chunks,
        len(run.rounds),
        vote.sends,
        vote.receives,
        vote.sent,
        vote.received,
        run.far.sends,
        run.far.sent,
        run.far.received,
        run.memory,
        agreement.sends,
        agreement.sent,
    )


def _agreement(header: Header, pending: bool, rank: int, size: int) -> Load:
    """Headers, and counts of NaN where they are ``pending``, of ranks that agree and hold none."""

    def headers(wire: TaggedTransport) -> Steps[Any]:
        return Engine(wire.transport, timeout=1.0, every=0).headers(wire, header, _FUNCTION)

    # After one exchange of headers ranks that agree go on.
    load = dry_steps(headers, rank, size, most=1 if size <= SHORT_ABOVE else None).far
    if pending:
        load.add(dry_steps(lambda wire: exchange_nans(wire, 0, _FUNCTION), rank, size).far)
    return load
