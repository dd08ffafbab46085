"""alltoall-vote: each rank tallies one shard of the coordinates, then all gather the results."""

from __future__ import annotations

from itertools import pairwise

from mpisign.collectives.vote_task import VoteTask
from mpisign.engine.pipeline import pipelined, slots
from mpisign.transports.base import Pending, Steps
from mpisign.transports.tagged import TaggedTransport


def alltoall_vote(wire: TaggedTransport, task: VoteTask) -> Steps[None]:
    """Receives k B (1 - 1/p) + kd B (1 - 1/p) bytes per rank; tolerates bad votes, not bad tallies.

    Wire: a chunk's bytes [a, b) are cut into p shards, rank r owns the one from
    a + (b - a) r // p. Up, chunk by chunk: to each owner its bytes of the sign plane, then of the
    mask plane. Down: each owner's bytes of the result's planes to all. The chunks' exchanges
    overlap. Raises WireError, on the owner that sees it, if a plane's padding is not 0.
    Source: Bernstein et al. 2019, majority vote, with the parameter server sharded over the ranks.
    """
    p, rank, others = wire.size, wire.rank, wire.others
    rows = task.rows(p)

    def held(chunks: int, widest: int) -> int:
        return slots(chunks) * ((task.k + task.kd) * widest + p * task.k * -(-widest // p))

    chunks = task.chunks(wire.transport.message, p, held)
    widest = max(b - a for a, b in chunks)
    shard = -(-widest // p)
    n = slots(len(chunks))
    ballots = [wire.empty(task.k, widest) for _ in range(n)]
    stacks = [wire.empty(p, task.k, shard) for _ in range(n)]
    results = [wire.empty(task.kd, widest) for _ in range(n)]
    shards = [
        [slice(*s) for s in pairwise((b - a) * r // p for r in range(p + 1))] for a, b in chunks
    ]

    def up(i: int) -> Pending:
        a, b = chunks[i]
        mine = shards[i][rank]
        planes = ballots[i % n][:, : b - a]
        task.pack(a, b, planes)
        stack = stacks[i % n][..., : mine.stop - mine.start]
        stack[rows[rank]] = planes[:, mine]
        sends = [(r, plane[shards[i][r]]) for r in others for plane in planes]
        recvs = [(r, plane) for r in others for plane in stack[rows[r]]]
        return wire.exchange(sends, recvs, "ballots")

    def down(i: int) -> Pending:
        (a, b), mine = chunks[i], shards[i][rank]
        stack = stacks[i % n][..., : mine.stop - mine.start]
        result = results[i % n][:, : b - a]
        task.check_padding(stack, a + mine.start)
        own = result[:, mine]
        task.tally(stack, a + mine.start, own)
        recvs = [(r, plane[shards[i][r]]) for r in others for plane in result]
        return wire.exchange([(r, plane) for r in others for plane in own], recvs, "results")

    def unpack(i: int) -> None:
        a, b = chunks[i]
        task.unpack(a, b, results[i % n][:, : b - a])

    yield from pipelined(len(chunks), up, down, unpack)
