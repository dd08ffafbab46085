"""allgather-vote: every rank receives every ballot and tallies for itself."""

from __future__ import annotations

from mpisign.collectives.ballot import Ballot
from mpisign.collectives.line import Line
from mpisign.collectives.pipeline import pipelined, slots
from mpisign.transports.base import Pending, Steps


def allgather_vote(line: Line, ballot: Ballot) -> Steps[None]:
    """Receives (p - 1) k B bytes per rank; tolerates bad votes and bad tallies.

    Wire: chunk by chunk, the bytes of the sign plane, then of the mask plane, to every rank. Raises
    WireError, on the ranks that see it, if a plane's padding is not 0.
    """
    chunks, others = ballot.chunks(line.transport.message, 1), line.transport.others()
    rows = ballot.rows(line.size)
    widest = max(b - a for a, b in chunks)
    stacks = [line.empty(line.size, ballot.k, widest) for _ in range(slots(len(chunks)))]
    result = line.empty(ballot.kd, widest)

    def send(i: int) -> Pending:
        a, b = chunks[i]
        stack = stacks[i % len(stacks)][..., : b - a]
        own = stack[rows[line.rank]]
        ballot.pack(a, b, own)
        sends = [(r, plane) for r in others for plane in own]
        return line.exchange(sends, [(r, plane) for r in others for plane in stack[rows[r]]])

    def tally(i: int) -> None:
        a, b = chunks[i]
        stack, out = stacks[i % len(stacks)][..., : b - a], result[:, : b - a]
        ballot.check_padding(stack, a)
        ballot.tally(stack, a, out)
        ballot.unpack(a, b, out)

    yield from pipelined(len(chunks), send, tally)
