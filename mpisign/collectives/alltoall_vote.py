"""alltoall-vote: each rank tallies one shard of the coordinates, then all gather the results."""

from __future__ import annotations

import numpy as np

from mpisign import planes, policies
from mpisign.collectives.ballot import Ballot, Planes
from mpisign.errors import WireError
from mpisign.transports.base import Steps, Transport

_VERDICT = np.dtype("<u4")  # 0, or 1 + the rank whose planes an owner found malformed


def alltoall_vote(transport: Transport, ballot: Ballot) -> Steps[Planes]:
    """Receives k B (1 - 1/p) + kd B (1 - 1/p) bytes per rank; tolerates bad votes, not bad tallies.

    Wire: rank r owns bytes [B r // p, B (r + 1) // p) of the planes. Up: for each owner its bytes
    of the sign plane, then of the mask plane. Down: each owner's verdict u32 (an owner that alone
    raised would leave the others waiting), then its bytes of the result's planes. Returns the
    result's planes (kd, B). Raises WireError, the same on every rank, if any padding is not 0.
    Source: Bernstein et al. 2019, majority vote, with the parameter server sharded over the ranks.
    """
    p, rank = transport.size, transport.rank
    k, nbytes = ballot.planes.shape
    bounds = [nbytes * r // p for r in range(p + 1)]
    sizes = [b - a for a, b in zip(bounds, bounds[1:], strict=False)]
    first, mine = bounds[rank], sizes[rank]

    received = yield transport.start_alltoallv(
        _by_owner(ballot.planes, bounds), [k * s for s in sizes], [k * mine] * p
    )
    stack = received.reshape(p, k, mine)
    last = first + mine == nbytes
    length = ballot.length - 8 * first if last else 8 * mine
    verdict = 0
    if mine and last:
        bad = ~planes.padding_is_zero(stack, length).all(axis=1)
        verdict = 1 + int(bad.argmax()) if bad.any() else 0
    result = ballot.tally(stack, length, first)

    kd = policies.planes_down(ballot.ties)
    message = np.empty(_VERDICT.itemsize + result.size, dtype=np.uint8)
    message[: _VERDICT.itemsize].view(_VERDICT)[0] = verdict
    message[_VERDICT.itemsize :] = result.reshape(-1)
    counts = [_VERDICT.itemsize + kd * s for s in sizes]
    received = yield transport.start_allgatherv(message, counts)
    return _from_owners(received, counts, bounds, kd)


def _by_owner(ballots: Planes, bounds: list[int]) -> Planes:
    """The planes' bytes in the order of their owners; no copy for a single plane."""
    if len(ballots) == 1:
        return ballots[0]
    return np.concatenate(
        [ballots[:, a:b].reshape(-1) for a, b in zip(bounds, bounds[1:], strict=False)]
    )


def _from_owners(received: Planes, counts: list[int], bounds: list[int], kd: int) -> Planes:
    result = np.empty((kd, bounds[-1]), dtype=np.uint8)
    at = 0
    for owner, count in enumerate(counts):
        message = received[at : at + count]
        at += count
        verdict = int(np.frombuffer(message[: _VERDICT.itemsize].tobytes(), _VERDICT)[0])
        if verdict:
            raise WireError(
                f"majority vote: rank {verdict - 1} sent planes with padding not 0 "
                f"(found by rank {owner})"
            )
        shard = message[_VERDICT.itemsize :].reshape(kd, -1)
        result[:, bounds[owner] : bounds[owner + 1]] = shard
    return result
