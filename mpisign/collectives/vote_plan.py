"""A vote that is agreed on once and allocated once: then it only packs, moves, tallies, unpacks."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpisign import _kernels, census, policies
from mpisign.collectives.plan import Plan
from mpisign.collectives.vote_layout import VoteLayout
from mpisign.collectives.vote_task import Pieces, VoteTask, signs_and_mask
from mpisign.engine.agreement import refuse_nans
from mpisign.engine.engine import Engine
from mpisign.engine.pipeline import DEPTH
from mpisign.engine.preamble import PREAMBLE, FirstMessages, Preambles
from mpisign.planes.vote import majority_rows
from mpisign.stats import begin_vote, count_stage
from mpisign.transports.base import Bytes, FirstRound, Part, Steps, Transport
from mpisign.transports.tagged import TaggedTransport


class _Slot:
    """Memory of a chunk in flight: what is sent, the stack of all ranks' rows, the results.

    Rows have room for a preamble in front of the planes. ``ups``: a row for each owner, of which
    the own one is this rank's row of the stack; where all ranks tally all, that one alone.
    """

    def __init__(self, layout: VoteLayout) -> None:
        size, parts, row, used = layout.size, layout.parts, layout.row, layout.used
        arena = np.empty(layout.slot_nbytes, np.uint8)
        stack, rest = arena[: size * row], arena[size * row :]
        self.stack = stack.reshape(size, row)
        self.ups = rest[: layout.owners * row].reshape(-1, row)
        self.results = rest[layout.owners * row :].reshape(parts, layout.result)
        for memory in (self.stack[:, :used], self.ups[:, :used], self.results):
            memory.fill(0)  # the pages are there from now on


class _Chunk:
    """One chunk's messages and pieces, in the memory of its slot."""

    def __init__(self, plan: VotePlan, index: int, slot: _Slot) -> None:
        task, wire, own, layout = plan.task, plan.transport, plan.own, plan.layout
        a, b = layout.chunks[index]
        k, kd, parts = task.k, task.kd, layout.parts
        width = layout.width(index)
        head, tail = PREAMBLE, PREAMBLE + k * width
        self.headed = layout.headed(index)
        start, end = layout.up(index)
        spans = [(min(a + width * r, b), min(a + width * (r + 1), b)) for r in range(parts)]
        mine = spans[own]
        rows, others = plan.rows, wire.others
        row = slot.stack[rows[wire.rank]]
        to = [row if parts == 1 or r == wire.rank else slot.ups[r] for r in range(wire.size)]
        up = row[start:end]
        self.sends: list[Part] = [(r, up if parts == 1 else to[r][start:end]) for r in others]
        self.recvs: list[Part] = [(r, slot.stack[rows[r]][start:end]) for r in others]

        def planes(memory: Bytes, n: int, span: tuple[int, int]) -> Any:
            return memory[: n * width].reshape(n, width)[:, : span[1] - span[0]]

        self.ballots = Pieces(
            spans,
            [planes(to[r if parts > 1 else wire.rank][head:], k, s) for r, s in enumerate(spans)],
        )
        self.stack = slot.stack[:, head:tail].reshape(wire.size, k, width)
        self.stack = self.stack[..., : mine[1] - mine[0]]
        self.first = mine[0]
        results = [planes(slot.results[r], kd, s) for r, s in enumerate(spans)]
        self.out = results[own]
        self.results = Pieces(spans, results)
        self.down_sends: list[Part] = []
        self.down_recvs: list[Part] = []
        if parts > 1:
            n = layout.down(index)
            self.down_sends = [(r, slot.results[own][:n]) for r in others]
            self.down_recvs = [(r, slot.results[r][:n]) for r in others]
        # The bits behind the last coordinate, which must be 0 in what others sent.
        self.padded = bool(mine[1] == task.nbytes and task.length % 8 and mine[1] > mine[0])
        length = min(task.length - 8 * mine[0], 8 * (mine[1] - mine[0]))
        stride, second, _ = self.stack.strides
        sign = slot.stack.__array_interface__["data"][0] + head
        stacked = sign, sign + second if k == 2 else 0, stride, wire.size, length
        self.majority = (stacked, signs_and_mask(self.out)) if length > 0 else None


class VotePlan(Plan):
    """An allgather- or alltoall-vote: the planes travel behind the preambles.

    ``sharded``: each rank tallies one shard of the coordinates (alltoall-vote), else all tally all
    (allgather-vote). Chunks follow each other as in ``pipeline``.

    Wire, allgather: chunk by chunk, the bytes of the sign plane, then of the mask plane, to every
    rank. Alltoall: a chunk's bytes [a, b) are cut into p shards of w = ceil((b - a) / p) bytes (the
    last ones less, or none), rank r owns the one from a + w r. Up, chunk by chunk: to each owner w
    bytes of the sign plane, then of the mask plane. Down: each owner's w bytes of the result's
    planes to all. Messages up of the first and the last chunk have a preamble in front; the first
    is padded to ``Transport.frame``. Received a rank: k B (p - 1) bytes, or
    (k + kd) B (1 - 1 / p), and at most 2 (p - 1) preambles. Raises WireError, on ranks that see
    it, if a plane's padding is not 0.
    """

    def __init__(
        self, transport: Transport, task: VoteTask, sharded: bool, terms: bytes, function: str
    ) -> None:
        super().__init__(transport, task, terms, function)
        self.own = transport.rank if sharded else 0
        self.rows = task.rows(transport.size)
        self.layout = layout = VoteLayout(task, transport, sharded)
        self.parts, self.chunks = layout.parts, layout.chunks
        self._slots = [_Slot(layout) for _ in range(layout.slots)]
        self._made: list[_Chunk | None] = [None] * len(self.chunks)
        first = self._chunk(0)
        rooms = [self._slots[0].stack[self.rows[r]] for r in transport.others]
        self.first = FirstMessages(transport, first.sends, first.recvs, rooms)
        self._last: Preambles = self.first
        if len(self.chunks) > 1:
            last = self._chunk(len(self.chunks) - 1)
            self._last = Preambles(last.sends, last.recvs)
        self._plain = (
            task.weights is None and task.groups is None and type(task).count is VoteTask.count
        )

    @property
    def nbytes(self) -> int:
        return self.layout.nbytes

    def run_agreed(
        self, engine: Engine, wire: TaggedTransport, number: int, step: int, settings: int
    ) -> Steps[None]:
        self._begin(engine, number)
        first = self._chunk(0)
        self.first.fill(self.terms, step, settings, self.task.nans)
        up = wire.exchange(first.sends, first.recvs, "ballots")
        if len(self.chunks) > 1:
            yield from self._rest(wire, up, step, settings)
            self._refuse_nans()
        else:
            yield up
            self._refuse_nans()  # before anything is unpacked
            yield from self._from_first(wire, step, settings)
        self._end(engine)

    def _from_first(self, wire: TaggedTransport, step: int, settings: int) -> Steps[None]:
        if len(self.chunks) > 1:
            yield from self._rest(wire, None, step, settings)
            self._refuse_nans()
        else:
            first = self._chunk(0)
            self._tally(first)
            if self.parts > 1:
                yield wire.exchange(first.down_sends, first.down_recvs, "results")
            self.task.unpack_pieces(first.results)

    def start(
        self, engine: Engine, wire: TaggedTransport, number: int, step: int, settings: int
    ) -> FirstRound:
        started = super().start(engine, wire, number, step, settings)
        if len(self.chunks) > 1:  # meanwhile
            self.task.pack_pieces(self._chunk(1).ballots)
        return started

    def _begin(self, engine: Engine, number: int) -> None:
        super()._begin(engine, number)
        self.task.pack_pieces(self._chunk(0).ballots)

    def _rest(self, wire: TaggedTransport, up: Any, step: int, settings: int) -> Steps[None]:
        """All chunks of several; ``up``: the first one's exchange, None if it is over."""
        n = len(self.chunks)
        ups: list[Any] = [None] * n
        downs: list[Any] = [None] * n
        ups[0] = up
        for turn in range(n + 2 * DEPTH):
            if 0 < turn < n:
                ups[turn] = self._up(wire, turn, step, settings, packed=up is None and turn == 1)
            i = turn - DEPTH
            if 0 <= i < n:
                if ups[i] is not None:
                    yield ups[i]
                    ups[i] = None
                chunk = self._chunk(i)
                self._tally(chunk)
                if self.parts > 1:
                    parts = (chunk.down_sends, chunk.down_recvs)
                    downs[i] = wire.exchange(*parts, "results", bulk=True)
                else:
                    self.task.unpack_pieces(chunk.results)
            i -= DEPTH
            if 0 <= i < n and self.parts > 1:
                yield downs[i]
                downs[i] = None
                self.task.unpack_pieces(self._chunk(i).results)

    def _up(
        self, wire: TaggedTransport, i: int, step: int, settings: int, packed: bool = False
    ) -> Any:
        chunk = self._chunk(i)
        if not packed:
            self.task.pack_pieces(chunk.ballots)
        if chunk.headed:
            self._last.fill(self.terms, step, settings, self.task.nans)
        return wire.exchange(chunk.sends, chunk.recvs, "ballots", bulk=True)

    def _tally(self, chunk: _Chunk) -> None:
        task = self.task
        if chunk.padded:
            task.check_padding(chunk.stack, chunk.first)
        if self._plain and task.lie is None:
            if chunk.majority is not None:
                start = begin_vote()
                stack, out = chunk.majority
                key = task.seed, task.step, policies.TIE_STREAM, chunk.first
                majority_rows(_kernels, stack, out, task.ties_code, key)
                count_stage("vote", start)
                if census.every and task.step % census.every == 0:
                    task.sample(chunk.stack, chunk.first)
        else:
            task.tally(chunk.stack, chunk.first, chunk.out)

    def _refuse_nans(self) -> None:
        if self.task.raises:
            refuse_nans(self.function, self._last.nans(self.task.nans))

    def _chunk(self, i: int) -> _Chunk:
        chunk = self._made[i]
        if chunk is None:
            chunk = self._made[i] = _Chunk(self, i, self._slots[i % len(self._slots)])
        return chunk
