"""allgather-vote: every rank receives every ballot and tallies for itself."""

from __future__ import annotations

from mpisign.collectives.ballot import Ballot
from mpisign.collectives.line import Line
from mpisign.transports.base import Steps

_DEPTH = 3  # chunks under way while another is packed or tallied


def allgather_vote(line: Line, ballot: Ballot) -> Steps[None]:
    """Receives (p - 1) k B bytes per rank; tolerates bad votes and bad tallies.

    Wire: chunk by chunk, the bytes of the sign plane, then of the mask plane, to every rank. Raises
    WireError, on the ranks that see it, if a plane's padding is not 0.
    """
    chunks = ballot.chunks()
    widest = max(b - a for a, b in chunks)
    stacks = [line.empty(line.size, ballot.k, widest) for _ in range(min(len(chunks), _DEPTH + 1))]
    result = line.empty(ballot.kd, widest)
    others = line.transport.others()
    exchanges = []
    for i in range(len(chunks) + _DEPTH):
        if i < len(chunks):
            a, b = chunks[i]
            stack = stacks[i % len(stacks)][..., : b - a]
            ballot.pack(a, b, stack[line.rank])
            sends = [(r, plane) for r in others for plane in stack[line.rank]]
            recvs = [(r, plane) for r in others for plane in stack[r]]
            exchanges.append(line.exchange(sends, recvs))
        j = i - _DEPTH
        if 0 <= j < len(chunks):
            yield exchanges[j]
            a, b = chunks[j]
            stack, out = stacks[j % len(stacks)][..., : b - a], result[:, : b - a]
            ballot.check_padding(stack, a)
            ballot.tally(stack, a, out)
            ballot.unpack(a, b, out)
