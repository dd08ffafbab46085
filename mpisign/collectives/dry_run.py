"""What a collective would send and hold: its generator, run without ranks and without memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mpisign.collectives.vote_task import Planes, VoteTask
from mpisign.engine.pipeline import DEPTH
from mpisign.transports.base import Completed, Part, Pending, Steps, Transport
from mpisign.transports.tagged import TaggedTransport

#: What ``mpisign.collectives.auto`` chooses from.
Algorithm = Callable[[TaggedTransport, VoteTask], Steps[None]]

_SMALL = 16  # bytes: messages of agreement, of which the next step may depend


@dataclass
class Load:
    """Messages and bytes of one rank, both ways."""

    sends: int = 0
    receives: int = 0
    sent: int = 0
    received: int = 0

    def add(self, other: Load, times: int = 1) -> None:
        """Adds ``times`` as much."""
        self.sends += times * other.sends
        self.receives += times * other.receives
        self.sent += times * other.sent
        self.received += times * other.received


@dataclass
class DryRun:
    """One rank's part in a collective that was not run.

    ``near``, ``far``: what goes to and comes from ranks of its node, and others. ``rounds``:
    exchanges that a chunk waits for one after another; for each, whether this rank has parts for
    near ones, and for far ones. ``memory``: bytes of the buffers.
    """

    near: Load = field(default_factory=Load)
    far: Load = field(default_factory=Load)
    rounds: list[tuple[bool, bool]] = field(default_factory=list)
    chunks: int = 0
    memory: int = 0


class DryTransport(Transport):
    """A wire that takes notes. What is small comes back as it went, as from ranks that agree."""

    name = "dry run"

    def __init__(self, rank: int, size: int, message: int, near: Collection[int]) -> None:
        self.rank, self.size, self.message = rank, size, message
        self._near = near
        self.notes = DryRun()

    def start_exchange(self, sends: Sequence[Part], recvs: Sequence[Part], tag: int) -> Pending:
        return self._exchange(sends, recvs, tag)  # and ``mpisign.stats`` counts nothing

    def _exchange(self, sends: Sequence[Part], recvs: Sequence[Part], tag: int) -> Pending:
        loads = self.notes.far, self.notes.near
        used = [False, False]
        for rank, part in sends:
            if nbytes := part.nbytes:  # transports may leave out empty parts
                used[near := rank in self._near] = True
                loads[near].sends += 1
                loads[near].sent += nbytes
        for rank, part in recvs:
            if nbytes := part.nbytes:
                used[near := rank in self._near] = True
                loads[near].receives += 1
                loads[near].received += nbytes
        self.notes.rounds.append((used[True], used[False]))
        for (_, out), (_, into) in zip(sends, recvs, strict=False):
            if out.nbytes == into.nbytes <= _SMALL:
                into[...] = out
        return Completed()

    def start_allreduce(self, values: Any, tag: int) -> Pending:
        raise NotImplementedError("a dry run has no ranks to reduce over")


class _DryWire(TaggedTransport):
    """Counts memory instead of taking it: all bytes of an array are one."""

    __slots__ = ()

    def empty(self, *shape: int) -> Any:
        array = np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), shape, (0,) * len(shape))
        assert isinstance(self.transport, DryTransport)
        self.transport.notes.memory += array.nbytes
        return array


class _DryTask(VoteTask):
    """A task of which nothing is packed, counted or unpacked."""

    def __init__(self, length: int, k: int, kd: int) -> None:
        super().__init__(length, k, "zero", 0, 0)
        self.kd = kd
        self.widths: Counter[int] = Counter()  # of all chunks
        self.shown: list[int] = []  # widths of the chunks that are gone through

    def chunks(
        self, message: int, parts: int, held: Callable[[int, int], int] | None = None
    ) -> list[tuple[int, int]]:
        if not self.widths:
            self.widths.update(b - a for a, b in super().chunks(message, parts, held))
            self.shown = [max(self.widths)]
        return [(0, width) for width in self.shown]

    def pack(self, a: int, b: int, out: Planes) -> None:
        pass

    def unpack(self, a: int, b: int, result: Planes) -> None:
        pass

    def tally(
        self, stack: Any, first: int, out: Any, weights: Any = None, voters: Any = None
    ) -> None:
        pass

    def add_up(self, stack: Any, first: int, weights: Sequence[int], out: Any) -> None:
        pass

    def verdict(self, stack: Any, first: int, weights: Sequence[int] | None, out: Any) -> None:
        pass

    def check_padding(self, stack: Any, first: int, ranks: Sequence[int] | None = None) -> None:
        pass


def dry_run(
    algorithm: Algorithm,
    length: int,
    k: int,
    kd: int,
    rank: int,
    size: int,
    message: int,
    near: Collection[int] = (),
    memory: bool = True,
) -> DryRun:
    """What ``rank`` of ``size`` ranks would send in a vote on ``length`` coordinates.

    ``algorithm`` cuts, sends and takes buffers as it does with ranks; packing and counting are left
    out. Chunks of one width have the same messages, so one of each width is gone through; for
    ``memory`` so many of the widest that they fill the pipeline.

    ``k``, ``kd``: planes of a ballot and of a result. ``message``: the transport's. ``near``: the
    ranks of this one's node.
    """
    task = _DryTask(length, k, kd)

    def noted() -> DryRun:
        transport = DryTransport(rank, size, message, near)
        for _ in algorithm(_DryWire(transport, 0), task):
            pass
        return transport.notes

    first = noted()
    found = DryRun(rounds=first.rounds, chunks=task.widths.total())
    widest = task.shown[0]
    for width, chunks in task.widths.items():
        task.shown = [width]
        of_chunk = first if width == widest else noted()
        found.near.add(of_chunk.near, chunks)
        found.far.add(of_chunk.far, chunks)
    if memory:
        task.shown = [widest] * min(found.chunks, DEPTH * len(first.rounds) + 1)
        found.memory = noted().memory
    return found


def dry_steps(
    steps: Callable[[TaggedTransport], Steps[Any]], rank: int, size: int, most: int | None = None
) -> DryRun:
    """The same of any collective among ranks that agree, up to its ``most``-th exchange."""
    transport = DryTransport(rank, size, Transport.message, ())
    for number, _ in enumerate(steps(_DryWire(transport, 0))):
        if number + 1 == most:
            break
    return transport.notes
