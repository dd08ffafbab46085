"""allgather-vote: every rank receives every ballot and tallies for itself."""

from __future__ import annotations

from mpisign.collectives.vote_task import VoteTask
from mpisign.engine.pipeline import pipelined, slots
from mpisign.transports.base import Pending, Steps
from mpisign.transports.tagged import TaggedTransport


def allgather_vote(wire: TaggedTransport, task: VoteTask) -> Steps[None]:
    """Receives (p - 1) k B bytes per rank; tolerates bad votes and bad tallies.

    Wire: chunk by chunk, the bytes of the sign plane, then of the mask plane, to every rank. Raises
    WireError, on the ranks that see it, if a plane's padding is not 0.
    """

    def held(chunks: int, widest: int) -> int:
        return (slots(chunks) * wire.size * task.k + task.kd) * widest

    chunks, others = task.chunks(wire.transport.message, 1, held), wire.others
    rows = task.rows(wire.size)
    widest = max(b - a for a, b in chunks)
    stacks = [wire.empty(wire.size, task.k, widest) for _ in range(slots(len(chunks)))]
    result = wire.empty(task.kd, widest)

    def send(i: int) -> Pending:
        a, b = chunks[i]
        stack = stacks[i % len(stacks)][..., : b - a]
        own = stack[rows[wire.rank]]
        task.pack(a, b, own)
        if wire.like is not None and (task.k == 1 or b - a == widest):
            # Of device memory, of which an exchange would copy the ballot once a rank.
            flat = [stack[row].reshape(-1) for row in rows]
            return wire.allgather(flat[wire.rank], flat)
        sends = [(r, plane) for r in others for plane in own]
        recvs = [(r, plane) for r in others for plane in stack[rows[r]]]
        return wire.exchange(sends, recvs, "ballots")

    def tally(i: int) -> None:
        a, b = chunks[i]
        stack, out = stacks[i % len(stacks)][..., : b - a], result[:, : b - a]
        task.check_padding(stack, a)
        task.tally(stack, a, out)
        task.unpack(a, b, out)

    yield from pipelined(len(chunks), send, tally)
