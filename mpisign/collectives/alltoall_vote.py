"""alltoall-vote: each rank tallies one shard of the coordinates, then all gather the results."""

from __future__ import annotations

from itertools import pairwise

from mpisign.collectives.ballot import Ballot
from mpisign.collectives.line import Line
from mpisign.transports.base import Steps

_DEPTH = 2  # chunks under way to their owners, and as many back, while another is worked on


def alltoall_vote(line: Line, ballot: Ballot) -> Steps[None]:
    """Receives k B (1 - 1/p) + kd B (1 - 1/p) bytes per rank; tolerates bad votes, not bad tallies.

    Wire: a chunk's bytes [a, b) are cut into p shards, rank r owns the one from
    a + (b - a) r // p. Up, chunk by chunk: to each owner its bytes of the sign plane, then of the
    mask plane. Down: each owner's bytes of the result's planes to all. The chunks' exchanges
    overlap. Raises WireError, on the owner that sees it, if a plane's padding is not 0.
    Source: Bernstein et al. 2019, majority vote, with the parameter server sharded over the ranks.
    """
    p, rank, others = line.size, line.rank, line.transport.others()
    chunks = ballot.chunks()
    n = len(chunks)
    widest = max(b - a for a, b in chunks)
    shard = -(-widest // p)
    slots = range(min(n, _DEPTH + 1))
    ballots = [line.empty(ballot.k, widest) for _ in slots]
    stacks = [line.empty(p, ballot.k, shard) for _ in slots]
    results = [line.empty(ballot.kd, widest) for _ in slots]
    shards = [list(pairwise((b - a) * r // p for r in range(p + 1))) for a, b in chunks]
    ups, downs = [], []
    for i in range(n + 2 * _DEPTH):
        if i < n:
            a, b = chunks[i]
            mine = shards[i][rank]
            planes = ballots[i % len(slots)][:, : b - a]
            ballot.pack(a, b, planes)
            stack = stacks[i % len(slots)][..., : mine[1] - mine[0]]
            stack[rank] = planes[:, slice(*mine)]
            sends = [(r, plane[slice(*shards[i][r])]) for r in others for plane in planes]
            recvs = [(r, plane) for r in others for plane in stack[r]]
            ups.append(line.exchange(sends, recvs))
        j = i - _DEPTH
        if 0 <= j < n:
            yield ups[j]
            (a, b), mine = chunks[j], shards[j][rank]
            stack = stacks[j % len(slots)][..., : mine[1] - mine[0]]
            result = results[j % len(slots)][:, : b - a]
            ballot.check_padding(stack, a + mine[0])
            own = result[:, slice(*mine)]
            ballot.tally(stack, a + mine[0], own)
            sends = [(r, plane) for r in others for plane in own]
            recvs = [(r, plane[slice(*shards[j][r])]) for r in others for plane in result]
            downs.append(line.exchange(sends, recvs))
        j -= _DEPTH
        if 0 <= j < n:
            yield downs[j]
            a, b = chunks[j]
            ballot.unpack(a, b, results[j % len(slots)][:, : b - a])
