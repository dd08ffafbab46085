"""A vote from header to result: what every front end's vote has in common."""

from __future__ import annotations

import hashlib
import os
import struct
import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from mpisign import arrays
from mpisign.collectives.agreement import Agreed, agree, all_alike, name_ranks, refuse_nans
from mpisign.collectives.ballot import Ballot, Planes
from mpisign.collectives.choice import choose
from mpisign.collectives.costs import Costs, costs_of
from mpisign.collectives.echo import echo
from mpisign.collectives.header import (
    BYZANTINE_F,
    INLINE,
    INLINE_NBYTES,
    NBYTES,
    SHORT_ABOVE,
    Header,
)
from mpisign.collectives.line import Line, Unbooked
from mpisign.collectives.nodes import find_nodes
from mpisign.collectives.progress import Handle, Queue, timeout_of_environment
from mpisign.errors import CollectiveError, WireError
from mpisign.transports.base import Steps, Transport


def check_every() -> int:
    """``MPISIGN_CHECK_EVERY``, default 16; ValueError if it is no number from 0."""
    text = os.environ.get("MPISIGN_CHECK_EVERY", "16")
    if not text.isdigit():
        raise ValueError(f"MPISIGN_CHECK_EVERY must be a number from 0, got {text!r}")
    return int(text)


class ReplicaDigest:
    """What a header's ``replica`` field carries: a byte for the kind, one for the number of the
    vote (modulo 256), then 30 of BLAKE2b over what ``update`` is given."""

    def __init__(self, kind: Literal["result", "parameters"], number: int = 0) -> None:
        self._head = bytes([1 + ("result", "parameters").index(kind), number % 256])
        self._hash = hashlib.blake2b(digest_size=30)

    def update(self, data: Any) -> None:
        """More data: bytes, or a contiguous array on the host."""
        self._hash.update(data)

    def field(self) -> bytes:
        """The 32 bytes."""
        return self._head + self._hash.digest()


def tell_choice(transport: Transport, why: str) -> None:
    """With ``MPISIGN_DEBUG=1`` rank 0 prints which transport was picked, and why."""
    if os.environ.get("MPISIGN_DEBUG") == "1" and transport.rank == 0:
        print(
            f"mpisign: {transport.name} between {transport.size} ranks, because {why}",
            file=sys.stderr,
            flush=True,
        )


class Channel:
    """What a communicator keeps between votes: its transport, its queue, its count of votes.

    ``votes`` counts calls, the same on every rank, and is the default step. The digest of every
    ``check_every``-th result travels in a later header (32 bytes, no exchange of its own), so that
    replicas that diverged are told at once. ``MPISIGN_CHECK_EVERY`` sets it, 0 turns it off.
    ``timeout``: seconds that ranks wait for each other, default ``MPISIGN_TIMEOUT``, else 600.
    ``nodes`` and ``costs`` are None until ``survey``.
    """

    def __init__(
        self, transport: Transport, timeout: float | None = None, every: int | None = None
    ) -> None:
        self.transport = transport
        self.queue = Queue(transport, timeout_of_environment() if timeout is None else timeout)
        self.votes = 0
        self.exchanges = 0  # front ends that share this
        self.check_every = check_every() if every is None else every
        self.digest = bytes(32)
        self.nodes: list[list[int]] | None = None
        self.costs: Costs | None = None
        self.device_wire: Transport | None = None  # for CUDA memory, once it was asked for

    def next_step(self) -> int:
        """The number of this call; must be called once in every vote on every rank."""
        self.votes += 1
        return self.votes - 1

    def due_digest(self, number: int) -> ReplicaDigest | None:
        """What is to be fed the result of vote ``number``, if it is one of those compared."""
        if not self.check_every or (number + 1) % self.check_every:
            return None
        return ReplicaDigest("result", number)

    def survey(self, given: Sequence[int] | None, wrong: Exception | None = None) -> None:
        """Finds the nodes (see ``find_nodes``) and measures what exchanges cost. Collective.

        ``wrong``: what is to be raised instead, so that the other ranks are told.
        """

        def steps(line: Line) -> Steps[None]:
            if wrong is not None:
                raise wrong
            line = Unbooked(line.transport, line.tag)
            self.nodes = yield from find_nodes(line, given)
            if line.size > 2 and self.transport.measurable:
                self.costs = yield from costs_of(line, self.nodes)

        self.submit("Communicator", steps).wait()

    def submit(
        self, function: str, steps: Callable[[Line], Steps[Any]], step: int | None = None
    ) -> Handle:
        """Starts a collective; see ``Queue.submit``."""
        return self.queue.submit(function, steps, step)

    def _line_for(self, line: Line, like: arrays.View | None) -> Steps[Line]:
        """The line for parts in the memory of ``like``."""
        if like is None:
            return line
        if self.device_wire is None and line.transport.device == "cuda":
            self.device_wire = line.transport
        if self.device_wire is None or self.device_wire.ordered:
            yield self.queue.turn(line.tag)
        if self.device_wire is None:
            from mpisign.transports import on_device

            wire, why = on_device.over(self.transport, timeout=self.queue.timeout)
            tell_choice(wire, why)
            self.device_wire = wire
        return Line(self.device_wire, line.tag, like)

    def headers(
        self, line: Line, header: Header, function: str, inline: Planes | None = None
    ) -> Steps[Agreed]:
        """Exchanges headers and agrees. ``inline``: the planes of a small ballot, sent along.

        Among more than ``SHORT_ABOVE`` ranks their digests go first, 16 bytes a rank, and headers
        only if these differ or a rank says why not. If any rank's says byzantine_f, their echo goes
        round too: WireError, naming ranks, if they were told different things, such as a weight or
        a refusal that only some are to hear.
        """
        header.rank, header.replica = line.rank, self.digest
        self.digest = bytes(32)
        try:
            message = header.encode(inline)
        except (struct.error, OverflowError) as error:  # a number that no check has kept out
            header = Header(header.operation, rank=line.rank).refusal(str(error))
            message = header.encode()
        if line.size > SHORT_ABOVE:
            words = np.empty((line.size, 16), dtype=np.uint8)
            yield line.allgather(header.short(message), words)
            same = words[0, 0] == 0 and (words == words[0]).all()
            if same and not header.byzantine_f:  # or a hostile rank tells some that all is well
                return agree(message[None], header, function, alike=True, size=line.size)
        rows = np.empty((line.size, NBYTES), dtype=np.uint8)
        yield line.allgather(message, rows)
        alike = all_alike(rows, line.rank)
        if header.byzantine_f or (not alike and rows[:, BYZANTINE_F].any()):
            told = yield from echo(line, rows, header.byzantine_f)
            if not all(told.trusted):
                raise WireError(
                    f"ranks were told different headers: {name_ranks(told.suspects)} "
                    "sent them, or lied about what came"
                )
        return agree(rows, header, function, alike, line.size)

    def vote(
        self,
        line: Line,
        ballot: Ballot,
        agreed: Agreed,
        number: int,
        late: Callable[[], int] | None = None,
        inlined: bool = False,
        like: arrays.View | None = None,
    ) -> Steps[None]:
        """The vote itself, after ``headers``; ``number``: what ``next_step`` gave it.

        ``inlined``: the ballot is ``small`` and all ranks' came with their headers. ``like``: an
        array of the framework and device that the ballot packs and unpacks on, default NumPy.

        ``late`` returns the NaNs that ``ballot.pack`` found, once it has packed all: if any rank's
        header said late, all ranks hear of them, and raise NaNError under nan="raise", before
        this returns (though after ``ballot.unpack``).
        """
        ballot.weights = agreed.weights
        if ballot.groups is not None and agreed.weights is not None:
            raise CollectiveError(f"{agreed.function}: weight must be 1 on all ranks in groups")
        digest = self.due_digest(number)
        if digest is not None:
            ballot.unpack = _digested(ballot.unpack, digest)
        if inlined:
            _small_vote(ballot, agreed)
        else:
            algorithm = choose(self, line.size, ballot, agreed.header)
            line = yield from self._line_for(line, like)
            yield from algorithm(line, ballot)
        # Under byzantine_f nothing is late: of NaNs, a hostile rank would tell only some.
        if agreed.late and agreed.header.nan == "raise" and not agreed.header.byzantine_f:
            nans = np.zeros((line.size, 8), dtype=np.uint8)
            own = np.array([late() if late else 0], dtype="<u8").view(np.uint8)
            yield line.allgather(own, nans)
            refuse_nans(agreed.function, nans.view("<u8")[:, 0].tolist())
        if digest is not None:
            self.digest = digest.field()


def small(ballot: Ballot, header: Header, size: int) -> bool:
    """Whether the ballot travels in the headers: agreed values decide alone."""
    fits = size <= SHORT_ABOVE and ballot.k * ballot.nbytes <= INLINE_NBYTES
    plain = header.algorithm in ("auto", "allgather") and not header.byzantine_f
    return fits and plain and header.device == "cpu"


def _small_vote(ballot: Ballot, agreed: Agreed) -> None:
    """The vote on planes that came with the headers: no exchange of its own."""
    nbytes = ballot.k * ballot.nbytes
    stack = agreed.rows[:, INLINE : INLINE + nbytes].reshape(
        len(agreed.rows), ballot.k, ballot.nbytes
    )
    stack = ballot.by_rows(stack)
    ballot.check_padding(stack, 0)
    result = np.empty((ballot.kd, ballot.nbytes), dtype=np.uint8)
    ballot.tally(stack, 0, result)
    ballot.unpack(0, ballot.nbytes, result)


def _digested(unpack: Callable[[int, int, Planes], None], digest: ReplicaDigest) -> Any:
    def read(a: int, b: int, result: Planes) -> None:
        for plane in result:
            digest.update(arrays.host(plane))
        unpack(a, b, result)

    return read
