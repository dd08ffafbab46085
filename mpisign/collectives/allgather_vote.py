"""allgather-vote: every rank receives every ballot and tallies for itself."""

from __future__ import annotations

from mpisign import planes
from mpisign.collectives.ballot import Ballot, Planes
from mpisign.errors import WireError
from mpisign.transports.base import Steps, Transport


def allgather_vote(transport: Transport, ballot: Ballot) -> Steps[Planes]:
    """Receives (p - 1) k B bytes per rank in one exchange; tolerates bad votes and bad tallies.

    Wire: each rank's planes (k, B), rows one after the other. Returns the result's planes (kd, B).
    Raises WireError, the same on every rank, if a plane's padding is not 0.
    """
    k, nbytes = ballot.planes.shape
    received = yield transport.start_allgatherv(
        ballot.planes.reshape(-1), [k * nbytes] * transport.size
    )
    stack = received.reshape(transport.size, k, nbytes)
    if nbytes:
        bad = ~planes.padding_is_zero(stack, ballot.length).all(axis=1)
        if bad.any():
            raise WireError(f"majority vote: rank {bad.argmax()} sent planes with padding not 0")
    return ballot.tally(stack, ballot.length, 0)
