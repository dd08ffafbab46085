"""Plans: what all calls of one kind share was agreed on once, and is allocated once."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from mpisign.collectives.dry_run import Algorithm
from mpisign.collectives.vote_task import VoteTask
from mpisign.engine.agreement import refuse_nans
from mpisign.engine.dissemination import all_same
from mpisign.engine.engine import Engine
from mpisign.engine.header import SHORT_ABOVE
from mpisign.engine.preamble import PREAMBLE, FirstMessages
from mpisign.transports.base import FirstRound, Steps, Transport
from mpisign.transports.tagged import Arena, TaggedTransport


class Plan(ABC):
    """A vote of one kind, for one call at a time.

    ``task``: what is voted on; its weights and groups are agreed. ``terms``: see
    ``preamble.terms_of``. ``function``: the caller's name for messages. ``nbytes``: of its memory.
    """

    first: FirstMessages

    def __init__(self, transport: Transport, task: VoteTask, terms: bytes, function: str) -> None:
        self.transport, self.task, self.terms, self.function = transport, task, terms, function
        self.busy = True

    @property
    @abstractmethod
    def nbytes(self) -> int: ...

    def free(self) -> None:
        """Releases what the transport keeps for it."""
        self.first.free()

    def run(
        self, engine: Engine, wire: TaggedTransport, number: int, step: int, settings: int
    ) -> Steps[bool]:
        """One call: the result is in the task; or False: ranks must exchange headers first.

        NaNError, on all ranks alike, if a rank has NaNs under nan="raise".
        """
        try:
            started = self.start(engine, wire, number, step, settings)
            yield started
            if not self.first.same(started):
                return False  # and is in use until headers were exchanged
            yield from self._from_first(wire, step, settings)
            self._end(engine)
        except BaseException:
            self.busy = False
            raise
        self.busy = False
        return True

    def start(
        self, engine: Engine, wire: TaggedTransport, number: int, step: int, settings: int
    ) -> FirstRound:
        """Packs what goes first, and starts the first round."""
        tag = wire.first_tag()
        self._begin(engine, number)
        replica = engine.take_digest(wire)
        nans = self.task.nans if self.task.raises else 0
        stop = engine.stop.asking
        return self.first.start(tag, self.terms, step, settings, nans, replica, stop)

    @abstractmethod
    def run_agreed(
        self, engine: Engine, wire: TaggedTransport, number: int, step: int, settings: int
    ) -> Steps[None]:
        """``run`` after headers, which all ranks agreed on."""

    @abstractmethod
    def _from_first(self, wire: TaggedTransport, step: int, settings: int) -> Steps[None]:
        """What follows the first round."""

    def _begin(self, engine: Engine, number: int) -> None:
        self.task.hash = engine.replicas.begin(number)
        if engine.adversary is not None:
            engine.adversary(self.task, 0)

    def _end(self, engine: Engine) -> None:
        engine.replicas.end(self.task.hash)


class GeneratorPlan(Plan):
    """Any algorithm: its first round has preambles alone, its memory is kept from call to call."""

    def __init__(
        self,
        transport: Transport,
        task: VoteTask,
        algorithm: Algorithm,
        terms: bytes,
        function: str,
    ) -> None:
        super().__init__(transport, task, terms, function)
        self._algorithm, self._arena = algorithm, Arena()
        frame = max(PREAMBLE, transport.frame)
        rooms = np.empty((transport.size, max(frame, transport.room)), dtype=np.uint8)
        rows, others = rooms[:, :frame], transport.others
        rows.fill(0)
        sends = [(r, rows[transport.rank]) for r in others]
        recvs = [(r, rows[r]) for r in others]
        self.first = FirstMessages(transport, sends, recvs, [rooms[r] for r in others])

    @property
    def nbytes(self) -> int:
        return self._arena.nbytes

    def _begin(self, engine: Engine, number: int) -> None:
        super()._begin(engine, number)
        if self.task.planes is None and self.task.short(self.transport.message):
            self.task.pack_whole()  # the preamble tells of NaNs

    def run_agreed(
        self, engine: Engine, wire: TaggedTransport, number: int, step: int, settings: int
    ) -> Steps[None]:
        self._begin(engine, number)
        yield from self._from_first(wire, step, settings)
        self._end(engine)

    def _from_first(self, wire: TaggedTransport, step: int, settings: int) -> Steps[None]:
        task = self.task
        self._arena.restart()
        yield from self._algorithm(
            TaggedTransport(self.transport, wire.tag, arena=self._arena), task
        )
        if task.raises:
            yield from exchange_nans(wire, int(task.nans), self.function)


def exchange_nans(wire: TaggedTransport, own: int, function: str) -> Steps[None]:
    """NaNError on all ranks if any of them has NaNs; many ranks first ask whether any has."""
    none = np.array([own > 0], dtype=np.uint8)
    if wire.size > SHORT_ABOVE and (yield from all_same(wire, none)):
        return
    nans = np.zeros((wire.size, 8), dtype=np.uint8)
    yield wire.allgather(np.array([own], dtype="<u8").view(np.uint8), nans)
    refuse_nans(function, nans.view("<u8")[:, 0].tolist())
