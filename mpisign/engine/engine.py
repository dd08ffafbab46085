"""A vote from header to result: what every front end's vote has in common."""

from __future__ import annotations

import hashlib
import os
import struct
import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from mpisign.backend import arrays
from mpisign.collectives.choice import choose
from mpisign.collectives.costs import Costs, measure_costs
from mpisign.collectives.nodes import find_nodes
from mpisign.collectives.vote_task import Planes, VoteTask
from mpisign.engine.agreement import Agreed, agree, all_alike, name_ranks, refuse_nans
from mpisign.engine.echo import echo
from mpisign.engine.header import (
    BYZANTINE_F,
    INLINE,
    INLINE_NBYTES,
    NBYTES,
    SHORT_ABOVE,
    Header,
)
from mpisign.engine.progress import Handle, ProgressEngine, timeout_of_environment
from mpisign.errors import CollectiveError, WireError
from mpisign.transports.base import Steps, Transport
from mpisign.transports.tagged import TaggedTransport, UncountedTransport


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


class Engine:
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
        self.progress = ProgressEngine(
            transport, timeout_of_environment() if timeout is None else timeout
        )
        self.votes = 0
        self.exchanges = 0  # front ends that share this
        self.check_every = check_every() if every is None else every
        self.digest = bytes(32)
        self.nodes: list[list[int]] | None = None
        self.costs: Costs | None = None
        self.device_transport: Transport | None = None  # for CUDA memory, once it was asked for

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

        def steps(wire: TaggedTransport) -> Steps[None]:
            if wrong is not None:
                raise wrong
            wire = UncountedTransport(wire.transport, wire.tag)
            self.nodes = yield from find_nodes(wire, given)
            if wire.size > 2 and self.transport.measurable:
                self.costs = yield from measure_costs(wire, self.nodes)

        self.submit("Communicator", steps).wait()

    def submit(
        self, function: str, steps: Callable[[TaggedTransport], Steps[Any]], step: int | None = None
    ) -> Handle:
        """Starts a collective; see ``ProgressEngine.submit``."""
        return self.progress.submit(function, steps, step)

    def _line_for(self, wire: TaggedTransport, like: arrays.View | None) -> Steps[TaggedTransport]:
        """The line for parts in the memory of ``like``."""
        if like is None:
            return wire
        if self.device_transport is None and wire.transport.device == "cuda":
            self.device_transport = wire.transport
        if self.device_transport is None or self.device_transport.ordered:
            yield self.progress.turn(wire.tag)
        if self.device_transport is None:
            from mpisign.transports import on_device

            found, why = on_device.over(self.transport, timeout=self.progress.timeout)
            tell_choice(found, why)
            self.device_transport = found
        return TaggedTransport(self.device_transport, wire.tag, like)

    def headers(
        self, wire: TaggedTransport, header: Header, function: str, inline: Planes | None = None
    ) -> Steps[Agreed]:
        """Exchanges headers and agrees. ``inline``: the planes of a small task, sent along.

        Among more than ``SHORT_ABOVE`` ranks their digests go first, 16 bytes a rank, and headers
        only if these differ or a rank says why not. If any rank's says byzantine_f, their echo goes
        round too: WireError, naming ranks, if they were told different things, such as a weight or
        a refusal that only some are to hear.
        """
        header.rank, header.replica = wire.rank, self.digest
        self.digest = bytes(32)
        try:
            message = header.encode(inline)
        except (struct.error, OverflowError) as error:  # a number that no check has kept out
            header = Header(header.operation, rank=wire.rank).refusal(str(error))
            message = header.encode()
        if wire.size > SHORT_ABOVE:
            words = np.empty((wire.size, 16), dtype=np.uint8)
            yield wire.allgather(header.short(message), words)
            same = words[0, 0] == 0 and (words == words[0]).all()
            if same and not header.byzantine_f:  # or a hostile rank tells some that all is well
                return agree(message[None], header, function, alike=True, size=wire.size)
        rows = np.empty((wire.size, NBYTES), dtype=np.uint8)
        yield wire.allgather(message, rows)
        alike = all_alike(rows, wire.rank)
        if header.byzantine_f or (not alike and rows[:, BYZANTINE_F].any()):
            told = yield from echo(wire, rows, header.byzantine_f)
            if not all(told.trusted):
                raise WireError(
                    f"ranks were told different headers: {name_ranks(told.suspects)} "
                    "sent them, or lied about what came"
                )
        return agree(rows, header, function, alike, wire.size)

    def vote(
        self,
        wire: TaggedTransport,
        task: VoteTask,
        agreed: Agreed,
        number: int,
        late: Callable[[], int] | None = None,
        inlined: bool = False,
        like: arrays.View | None = None,
    ) -> Steps[None]:
        """The vote itself, after ``headers``; ``number``: what ``next_step`` gave it.

        ``inlined``: the ballot is ``small`` and all ranks' came with their headers. ``like``: an
        array of the framework and device that the ballot packs and unpacks on, default NumPy.

        ``late`` returns the NaNs that ``task.pack`` found, once it has packed all: if any rank's
        header said late, all ranks hear of them, and raise NaNError under nan="raise", before
        this returns (though after ``task.unpack``).
        """
        task.weights = agreed.weights
        if task.groups is not None and agreed.weights is not None:
            raise CollectiveError(f"{agreed.function}: weight must be 1 on all ranks in groups")
        digest = self.due_digest(number)
        if digest is not None:
            task.unpack = _digested(task.unpack, digest)
        if inlined:
            _small_vote(task, agreed)
        else:
            algorithm = choose(self, wire.size, task, agreed.header)
            wire = yield from self._line_for(wire, like)
            yield from algorithm(wire, task)
        # Under byzantine_f nothing is late: of NaNs, a hostile rank would tell only some.
        if agreed.late and agreed.header.nan == "raise" and not agreed.header.byzantine_f:
            nans = np.zeros((wire.size, 8), dtype=np.uint8)
            own = np.array([late() if late else 0], dtype="<u8").view(np.uint8)
            yield wire.allgather(own, nans)
            refuse_nans(agreed.function, nans.view("<u8")[:, 0].tolist())
        if digest is not None:
            self.digest = digest.field()


def small(task: VoteTask, header: Header, size: int) -> bool:
    """Whether the ballot travels in the headers: agreed values decide alone."""
    fits = size <= SHORT_ABOVE and task.k * task.nbytes <= INLINE_NBYTES
    plain = header.algorithm in ("auto", "allgather") and not header.byzantine_f
    return fits and plain and header.device == "cpu"


def _small_vote(task: VoteTask, agreed: Agreed) -> None:
    """The vote on planes that came with the headers: no exchange of its own."""
    nbytes = task.k * task.nbytes
    stack = agreed.rows[:, INLINE : INLINE + nbytes].reshape(len(agreed.rows), task.k, task.nbytes)
    stack = task.by_rows(stack)
    task.check_padding(stack, 0)
    result = np.empty((task.kd, task.nbytes), dtype=np.uint8)
    task.tally(stack, 0, result)
    task.unpack(0, task.nbytes, result)


def _digested(unpack: Callable[[int, int, Planes], None], digest: ReplicaDigest) -> Any:
    def read(a: int, b: int, result: Planes) -> None:
        for plane in result:
            digest.update(arrays.host(plane))
        unpack(a, b, result)

    return read
