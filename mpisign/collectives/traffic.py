"""vote_traffic: what a vote among ranks that do not exist would send and hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mpisign import policies
from mpisign.collectives import auto
from mpisign.collectives.costs import Costs
from mpisign.collectives.dry_run import DryRun, DryTransport, Load, dry_run, dry_steps
from mpisign.collectives.hierarchy import grouped, hierarchy_of, levels_of
from mpisign.collectives.majority_vote import check_options
from mpisign.collectives.plan import exchange_nans
from mpisign.collectives.vote_layout import VoteLayout
from mpisign.collectives.vote_task import VoteTask
from mpisign.engine.engine import Engine
from mpisign.engine.header import SHORT_ABOVE, Header
from mpisign.engine.preamble import PREAMBLE
from mpisign.transports.base import Steps, Transport
from mpisign.transports.tagged import TaggedTransport

_FUNCTION = "vote_traffic"


@dataclass(frozen=True)
class VoteTraffic:
    """One rank's part in one ``majority_vote``.

    Args:
        algorithm: "allgather", "alltoall", "hierarchical" or "vote_of_votes".
        rank: whose part it is.
        chunks: into how many planes are cut; the exchanges of chunks overlap.
        rounds: exchanges that a chunk waits for, one after another.
        sends, receives: messages of the vote.
        sent, received: their bytes, of preambles in front of planes too.
        sends_outside, sent_outside, received_outside: of these to and from other nodes.
        memory: bytes of buffers beyond gradient and result.
        agreement_sends, agreement_sent: messages and bytes of headers, of preambles that travel
            alone and of counts of NaN, one way; as many come.

    Example:
        >>> import mpisign
        >>> traffic = mpisign.vote_traffic(10**6, 4, algorithm="allgather")
        >>> traffic.sends, traffic.sent, traffic.agreement_sent
        (9, 375384, 0)
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
    first: bool = False,
) -> VoteTraffic:
    """What a rank of a majority vote sends, receives and holds, for ranks that need not exist.

    A call of a kind that there was before: among up to 64 ranks it needs no headers. For allgather
    and alltoall the sizes are those by which the vote itself cuts its memory; any other collective
    runs, over a wire that counts what it is given and sends nothing, with memory that takes no
    room.

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
        first: the first call of its kind (length, dtype, policies), which exchanges headers.

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
        (2046, 317130, 279, 268727)
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
    if choice[0] in ("allgather", "alltoall"):
        run = _planned(task, choice[0] == "alltoall", rank, size, message, near)
        agreement = _agreement(header, first, 0, False, rank, size)
    else:
        run = dry_run(auto.named(*choice, hierarchy), length, k, kd, rank, size, message, near)
        agreement = _agreement(header, first, PREAMBLE, nan == "raise", rank, size)
    vote = Load()
    for load in (run.near, run.far):
        vote.add(load)
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


def _planned(
    task: VoteTask, sharded: bool, rank: int, size: int, message: int, near: frozenset[int]
) -> DryRun:
    """A VotePlan's part: all messages of a chunk have one size."""
    layout = VoteLayout(task, DryTransport(rank, size, message, near), sharded)
    mates = len(near - {rank})
    others = size - 1 - mates
    rounds = [(mates > 0, others > 0)] * (2 if sharded else 1)
    run = DryRun(rounds=rounds, chunks=len(layout.chunks), memory=layout.nbytes)
    for chunk in range(run.chunks):
        a, b = layout.up(chunk)
        for nbytes in (b - a, layout.down(chunk)):
            if nbytes:
                run.near.add(Load(1, 1, nbytes, nbytes), mates)
                run.far.add(Load(1, 1, nbytes, nbytes), others)
    return run


def _agreement(
    header: Header, first: bool, preamble: int, pending: bool, rank: int, size: int
) -> Load:
    """What ranks that agree and hold no NaN send besides the vote.

    ``preamble``: bytes of one that travels alone in calls after the first. ``pending``: NaNs are
    counted after the vote.
    """

    def headers(wire: TaggedTransport) -> Steps[Any]:
        return Engine(wire.transport, timeout=1.0, every=0).headers(wire, header, _FUNCTION)

    if size > SHORT_ABOVE:
        load = dry_steps(headers, rank, size).far
    elif first:  # after one exchange of headers ranks that agree go on
        load = dry_steps(headers, rank, size, most=1).far
    else:
        others = (size - 1) if preamble else 0
        load = Load(others, others, others * preamble, others * preamble)
    if pending:
        load.add(dry_steps(lambda wire: exchange_nans(wire, 0, _FUNCTION), rank, size).far)
    return load
