"""What a communicator keeps between collectives: transport, progress, agreement, digests."""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mpisign.backend import arrays
from mpisign.engine.agreement import Agreed, agree, all_alike
from mpisign.engine.device_count import CountReader
from mpisign.engine.dissemination import all_same
from mpisign.engine.echo import echo
from mpisign.engine.handle import Handle
from mpisign.engine.header import BYZANTINE_F, MAGIC, NBYTES, SHORT_ABOVE, Header
from mpisign.engine.plan_cache import PlanCache
from mpisign.engine.progress import ProgressEngine, timeout_of_environment
from mpisign.engine.replicas import ReplicaRecord, check_every
from mpisign.engine.result_memory import ResultMemory
from mpisign.errors import WireError
from mpisign.stopping import StopChannel
from mpisign.transports.base import Bytes, LayeredTransport, Prepared, Steps, Transport
from mpisign.transports.tagged import TaggedTransport


def print_choice(transport: Transport, why: str) -> None:
    """With ``MPISIGN_DEBUG=1`` rank 0 prints which transport was picked, and why."""
    if os.environ.get("MPISIGN_DEBUG") == "1" and transport.rank == 0:
        print(
            f"mpisign: {transport.name} between {transport.size} ranks, because {why}",
            file=sys.stderr,
            flush=True,
        )


class Engine:
    """The state of one communicator between its collectives.

    ``votes`` counts calls, the same on every rank, and is the default step. ``replicas``: digests
    of results, of which the latest travels in every header (32 bytes, no exchange of its own), so
    that diverged replicas raise; there is a new one every ``every`` calls
    (``MPISIGN_CHECK_EVERY``), none for 0. ``digest``: of the parameters, for the next call to carry
    instead; b"" if none is due. ``timeout``:
    seconds that ranks wait for each other, default ``MPISIGN_TIMEOUT``, else 600. ``hierarchy``
    (of nodes) and ``costs`` are None until ``mpisign.collectives.auto.survey``. ``device_costs``:
    of exchanges of CUDA memory, None until the first vote on some.
    """

    def __init__(
        self, transport: Transport, timeout: float | None = None, every: int | None = None
    ) -> None:
        self.transport = transport
        timeout = timeout_of_environment() if timeout is None else timeout
        self.stop = StopChannel()
        self.progress = ProgressEngine(transport, timeout, self.stop.carried)
        self.plans = PlanCache()
        self.results = ResultMemory()
        self.votes = 0
        self.exchanges = 0  # front ends that share this
        self.replicas = ReplicaRecord(check_every() if every is None else every)
        self.digest = b""
        self.counts = CountReader()
        self.hierarchy: Any = None
        self.costs: Any = None
        self.device_costs: Any = None
        self.device_transport: Transport | None = None  # for CUDA memory, from its first use on
        #: For experiments with hostile ranks: called with each vote's task, which it may change,
        #: and byzantine_f; returns the algorithm to run, or None for the agreed one.
        self.adversary: Callable[[Any, int], Any] | None = None

    @property
    def nodes(self) -> Sequence[Sequence[int]] | None:
        """The ranks of each node; None until they are known."""
        return None if self.hierarchy is None else self.hierarchy.partitions[0]  # type: ignore[no-any-return]

    def start(
        self,
        function: str,
        operation: str,
        step: int | None,
        make: Callable[[int, int], Callable[[TaggedTransport], Steps[Any]]],
    ) -> Handle:
        """Starts a collective on this rank's arguments.

        ``make(number of the call, step)`` checks them and returns the collective's generator
        function. Where it raises, the other ranks are already on their way into the collective, so
        this rank refuses there and all ranks raise.
        """
        number = self.votes
        self.votes = number + 1
        if step is None:
            step = number
        try:
            steps = make(number, step)
        except Exception as error:
            refusal = Header(operation).refusal(str(error).removeprefix(f"{function}: "))
            steps = lambda wire: self.headers(wire, refusal, function)  # noqa: E731
        return self.progress.submit(function, steps, step, number)

    def submit(
        self, function: str, steps: Callable[[TaggedTransport], Steps[Any]], step: int | None = None
    ) -> Handle:
        """Starts a collective; see ``ProgressEngine.submit``."""
        return self.progress.submit(function, steps, step)

    def free(self) -> None:
        """Ends what is in flight and releases the transport; a second time does nothing.

        BrokenError in a forked child, whose parent has it still.
        """
        if self.progress.owner.is_foreign():
            raise self.progress.owner.refusal("free")
        self.progress.finish()
        self.plans.clear()
        if not self.transport.ended:
            self.transport.ended = "it was freed"
            for each in self.progress.wires:
                each.free()

    def wire_for(self, wire: TaggedTransport, like: arrays.View | None) -> Steps[TaggedTransport]:
        """The tagged transport for parts in the memory of ``like`` (None: host memory)."""
        if like is None:
            return wire
        if self.device_transport is None and wire.transport.device == "cuda":
            self.device_transport = wire.transport
        if self.device_transport is None or self.device_transport.ordered:
            yield self.progress.turn(wire.tag)
        if self.device_transport is None:
            from mpisign.transports import on_device

            found, why = on_device.over(self.transport, timeout=self.progress.timeout)
            print_choice(found, why)
            self.device_transport = found
            # One that lies over the control transport aborts and frees it with itself.
            covered = [] if isinstance(found, LayeredTransport) else [self.transport]
            self.progress.wires = [found, *covered]
        return TaggedTransport(self.device_transport, wire.tag, like)

    def take_digest(self, wire: TaggedTransport) -> bytes:
        """The digest that the call of ``wire`` carries: of parameters, or of earlier results."""
        replica = wire.replica
        if replica is None:
            replica = self.digest or self.replicas.field(wire.settled)
            wire.replica, self.digest = replica, b""
        return replica

    def headers(self, wire: TaggedTransport, header: Header, function: str) -> Steps[Agreed]:
        """Exchanges headers and agrees.

        If a rank sent something else in the first round (it calls something else, or a plan that
        does not fit this call), all ranks exchange headers once more.

        Among more than ``SHORT_ABOVE`` ranks their digests go first, 16 bytes in each of
        ceil(log2 p) rounds, and headers only if these differ or a rank asks for it. If any rank's
        has byzantine_f, headers are echoed too: WireError, naming ranks, if a rank sent different
        headers to different ranks.
        """
        agreed = yield from self._agreed(wire, header, function)
        if agreed.stop:
            self.progress.carried.add(wire.tag)
        return agreed

    def _agreed(self, wire: TaggedTransport, header: Header, function: str) -> Steps[Agreed]:
        header.rank, header.replica = wire.rank, self.take_digest(wire)
        header.stop = self.stop.asking
        try:
            message = header.encode()
        except (struct.error, OverflowError) as error:  # a number that no check has kept out
            header = Header(header.operation, rank=wire.rank).refusal(str(error))
            message = header.encode()
        rows = None
        if wire.size <= SHORT_ABOVE:
            rows = yield from self._first_headers(wire, message, header.byzantine_f > 0)
        # Under byzantine_f a digest starts with 1: a hostile rank may have sent some another.
        elif (yield from all_same(wire, header.short(message))):
            return agree(message[None], header, function, alike=True, size=wire.size)
        if rows is None:
            rows = np.empty((wire.size, NBYTES), dtype=np.uint8)
            yield wire.transport.start_allgather(message, list(rows), wire.tag)
        alike = all_alike(rows, wire.rank)
        if header.byzantine_f or (not alike and rows[:, BYZANTINE_F].any()):
            heard = yield from echo(wire, rows, header.byzantine_f)
            if not all(heard.trusted):
                raise WireError(heard.blame("headers"))
        return agree(rows, header, function, alike, wire.size)

    def _first_headers(self, wire: TaggedTransport, message: Bytes, strict: bool) -> Steps[Any]:
        """All headers (ranks, 512), or None: the first round is over, or not all sent headers.

        ``strict``: of a call with byzantine_f. If others have it too, a hostile rank may send a
        header to some ranks only, so that not all would go on to a second round.
        """
        if wire.first_done:
            return None
        frame = wire.transport.frame or NBYTES
        rooms = np.empty((wire.size, max(frame, wire.transport.room)), dtype=np.uint8)
        rows = rooms[:, :frame]
        rows.fill(0)
        rows[wire.rank, :NBYTES] = message
        sends = [(r, rows[wire.rank]) for r in wire.others]
        recvs = [(r, rows[r]) for r in wire.others]
        into = [rooms[r] for r in wire.others]
        first = Prepared(wire.transport, sends, recvs, into).start(wire.first_tag())
        yield first
        rows = rows[:, :NBYTES]
        headers = (rows[:, : len(MAGIC)] == rows[wire.rank, : len(MAGIC)]).all(axis=1)
        if strict and (rows[wire.others][headers[wire.others], BYZANTINE_F]).any():
            if first.wrong:
                raise WireError(first.wrong)
            return rows
        if first.wrong or not headers.all():
            return None
        return rows
