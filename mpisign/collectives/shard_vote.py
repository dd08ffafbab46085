"""shard-vote: each rank gets the majority of its own shard alone, as in a reduce-scatter."""

from __future__ import annotations

from mpisign.collectives.vote_task import VoteTask
from mpisign.engine.pipeline import pipelined, slots
from mpisign.transports.base import Pending, Steps
from mpisign.transports.tagged import TaggedTransport


def shard_vote(wire: TaggedTransport, task: VoteTask) -> Steps[None]:
    """Receives k B (1 - 1/p) bytes per rank, of planes of B bytes: the way up of alltoall-vote.

    ``task.nbytes`` is a multiple of the ranks p: shard r of every plane is its bytes
    [r B / p, (r + 1) B / p). ``task.pack`` is asked for pieces of all shards in turn, not from 0
    to the end; ``task.unpack`` gets the bytes of this rank's shard, one piece after the other.
    The random bits of ties depend on the place in the whole task, as in every vote.

    Wire: a shard's bytes are cut into pieces; piece by piece, to each rank those of its shard, of
    the sign plane, then of the mask plane. The pieces' exchanges overlap.
    """
    p, rank, others = wire.size, wire.rank, wire.others
    rows = task.rows(p)
    shard = task.nbytes // p
    count = len(task.chunks(wire.transport.message, p))
    pieces = [(shard * i // count, shard * (i + 1) // count) for i in range(count)]
    widest = max(b - a for a, b in pieces)
    n = slots(count)
    ballots = [wire.empty(p, task.k, widest) for _ in range(n)]
    stacks = [wire.empty(p, task.k, widest) for _ in range(n)]
    result = wire.empty(task.kd, widest)

    def up(i: int) -> Pending:
        a, b = pieces[i]
        own = ballots[i % n][..., : b - a]
        for r in range(p):
            task.pack(r * shard + a, r * shard + b, own[r])
        stack = stacks[i % n][..., : b - a]
        stack[rows[rank]] = own[rank]
        sends = [(r, plane) for r in others for plane in own[r]]
        recvs = [(r, plane) for r in others for plane in stack[rows[r]]]
        return wire.exchange(sends, recvs, "ballots")

    def down(i: int) -> None:
        a, b = pieces[i]
        votes = result[:, : b - a]
        task.tally(stacks[i % n][..., : b - a], rank * shard + a, votes)
        task.unpack(rank * shard + a, rank * shard + b, votes)

    yield from pipelined(count, up, down)
