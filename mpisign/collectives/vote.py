"""A vote from header to result: what every front end's vote has in common."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np

from mpisign import policies
from mpisign.collectives.allgather_vote import allgather_vote
from mpisign.collectives.alltoall_vote import alltoall_vote
from mpisign.collectives.ballot import Ballot, Planes
from mpisign.collectives.header import NBYTES, Header, agree
from mpisign.collectives.progress import Queue
from mpisign.errors import CollectiveError
from mpisign.transports.base import Steps, Transport

_ALLGATHER_BYTES = 1 << 14  # below this an exchange costs its latency, not its bytes
_INT_MAX = (1 << 31) - 1  # MPI-3 counts and displacements


def check_every() -> int:
    """``MPISIGN_CHECK_EVERY``, default 16; ValueError if it is no number from 0."""
    text = os.environ.get("MPISIGN_CHECK_EVERY", "16")
    if not text.isdigit():
        raise ValueError(f"MPISIGN_CHECK_EVERY must be a number from 0, got {text!r}")
    return int(text)


def replica_digest(kind: Literal["result", "parameters"], *data: bytes) -> bytes:
    """What a header's ``replica`` field carries: a byte for the kind, then 31 of BLAKE2b."""
    digest = hashlib.blake2b(digest_size=31)
    for part in data:
        digest.update(part)
    return bytes([1 + ("result", "parameters").index(kind)]) + digest.digest()


class Channel:
    """What a communicator keeps between votes: its transport, its queue, its count of votes.

    ``votes`` counts calls, the same on every rank, and is the default step. The digest of every
    ``check_every``-th result travels in the next header (32 bytes, no exchange of its own), so that
    replicas that diverged are told at once. ``MPISIGN_CHECK_EVERY`` sets it, 0 turns it off.
    """

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.queue = Queue()
        self.votes = 0
        self.check_every = check_every()
        self.digest = bytes(32)

    def next_step(self) -> int:
        """The number of this call; must be called once in every vote on every rank."""
        self.votes += 1
        return self.votes - 1

    def headers(self, header: Header, function: str) -> Steps[list[Header]]:
        """Exchanges headers and agrees. Returns every rank's header in rank order."""
        header = replace(header, rank=self.transport.rank, replica=self.digest)
        self.digest = bytes(32)
        size = self.transport.size
        send = np.frombuffer(header.encode(), dtype=np.uint8)
        received = yield self.transport.start_allgatherv(send, [NBYTES] * size)
        data = received.tobytes()
        headers = [Header.decode(data[r * NBYTES : (r + 1) * NBYTES], r) for r in range(size)]
        agree(headers, function)
        return headers

    def vote(self, ballots: Planes, header: Header) -> Steps[Planes]:
        """The vote itself, after ``headers``. ``ballots``: (k, B). Returns (kd, B)."""
        ballot = Ballot(ballots, header.length, header.ties, header.seed, header.step)
        algorithm = choose(header.algorithm, self.transport.size, *ballots.shape)
        result = yield from algorithm(self.transport, ballot)
        if self.check_every and self.votes % self.check_every == 0:
            self.digest = replica_digest("result", result.tobytes())
        return result


def choose(
    algorithm: policies.Algorithm, size: int, k: int, nbytes: int
) -> Callable[[Transport, Ballot], Steps[Planes]]:
    """The algorithm for p ranks and k planes of ``nbytes``; depends on agreed values only.

    "auto" takes allgather while it receives no more than alltoall (p <= 2) or so little that the
    second exchange of alltoall would cost more than its bytes save.
    """
    fits = size * k * nbytes <= _INT_MAX
    if algorithm == "auto":
        small = (size - 1) * k * nbytes <= _ALLGATHER_BYTES
        algorithm = "allgather" if fits and (size <= 2 or small) else "alltoall"
    if algorithm == "allgather" and not fits:
        raise CollectiveError(
            f"majority vote: algorithm='allgather' would receive {size * k * nbytes} bytes, "
            f"more than {_INT_MAX}; use 'alltoall'"
        )
    return allgather_vote if algorithm == "allgather" else alltoall_vote
