"""How a VotePlan cuts planes into chunks and messages: sizes alone, without memory."""

from __future__ import annotations

from itertools import pairwise

from mpisign.collectives.vote_task import ARENA, VoteTask
from mpisign.engine.header import NBYTES, SHORT_ABOVE
from mpisign.engine.pipeline import DEPTH, slots
from mpisign.engine.preamble import PREAMBLE
from mpisign.transports.base import Transport

_ALIGN = 64
_FIRST = 16 << 10  # bytes of planes in a first message that others follow


class VoteLayout:
    """Chunks of a vote's planes, their messages, and the memory of those in flight.

    Depends on agreed values alone, but for the rank. ``sharded``: each rank tallies one shard of a
    chunk, else all tally all. A slot holds a row of ``row`` bytes for each rank, of which ``used``
    are; if sharded one for each owner too; and ``result`` bytes for each of ``parts`` results. All
    ``slots`` together, ``nbytes``, are at most ``ARENA`` and one plane.
    """

    def __init__(self, task: VoteTask, transport: Transport, sharded: bool) -> None:
        self.size, self.parts = transport.size, transport.size if sharded else 1
        self._k, self._kd = task.k, task.kd
        # Among many ranks digests of headers go before: these messages are no first round.
        rounds = transport.size <= SHORT_ABOVE
        self._frame, self._room = (transport.frame, transport.room) if rounds else (0, 0)
        self.chunks = self._cut(task, transport)
        widest = max(self.width(i) for i in range(len(self.chunks)))
        self.used, self.row, self.result = self._rows(widest)
        self.slots = slots(len(self.chunks))
        self.slot_nbytes = self._slot_nbytes(widest)
        self.nbytes = self.slots * self.slot_nbytes

    @property
    def owners(self) -> int:
        """Rows of a slot besides the ranks': one for each owner, where there are several."""
        return self.parts if self.parts > 1 else 0

    def width(self, chunk: int) -> int:
        """Bytes of the widest shard of a chunk."""
        a, b = self.chunks[chunk]
        width = -(-(b - a) // self.parts)
        # No message may look like a header.
        return width + (chunk == 0 and PREAMBLE + self._k * width == NBYTES)

    def headed(self, chunk: int) -> bool:
        """With preambles: the first chunk's are agreed on, the last one's have all NaNs."""
        return chunk in (0, len(self.chunks) - 1)

    def up(self, chunk: int) -> tuple[int, int]:
        """The bytes [a, b) of a row that are a message up. Planes begin at ``PREAMBLE``."""
        end = PREAMBLE + self._k * self.width(chunk)
        return 0 if self.headed(chunk) else PREAMBLE, max(end, self._frame) if chunk == 0 else end

    def down(self, chunk: int) -> int:
        """Bytes of a message down; 0 where all tally all."""
        return self._kd * self.width(chunk) if self.parts > 1 else 0

    def _cut(self, task: VoteTask, transport: Transport) -> list[tuple[int, int]]:
        """Byte ranges [a, b) of a plane that travel one after the other, in shards each.

        The first range is agreed on before the others start: it is short where others follow.
        """
        nbytes, most = task.nbytes, transport.first_message - PREAMBLE
        if transport.gathers and self.parts > 1:  # shards differ: preambles go alone
            return [(0, 0), *self._chunks(task, transport, 0)]
        whole = -(-nbytes // self.parts)
        if self._k * whole <= most and self._fits(1, whole + 1, nbytes):
            return [(0, nbytes)]
        width = min(most, _FIRST) // self._k
        while width > 1 and not self._fits(DEPTH + 1, width + 1, nbytes):
            width //= 2
        first = min(nbytes, width * self.parts)
        return [(0, first), *self._chunks(task, transport, first)]

    def _chunks(self, task: VoteTask, transport: Transport, first: int) -> list[tuple[int, int]]:
        """All chunks from byte ``first`` on, behind one of so many bytes."""

        def held(chunks: int, widest: int) -> int:
            # The first one is not among them.
            widest = max(-(-first // self.parts), -(-widest // self.parts))
            return slots(chunks + 1) * self._slot_nbytes(widest)

        bounded = self._fits(DEPTH + 1, 1, task.nbytes)  # else rows alone are more, however short
        n = len(task.chunks(transport.message, self.parts, held if bounded else None))
        ends = [first + (task.nbytes - first) * i // n for i in range(n + 1)]
        return [(a, b) for a, b in pairwise(ends) if b > a]

    def _fits(self, count: int, width: int, plane: int) -> bool:
        return count * self._slot_nbytes(width) <= ARENA + plane

    def _rows(self, width: int) -> tuple[int, int, int]:
        """Bytes of a row that are used, of a row, and of a result, with shards of ``width``."""
        used = max(PREAMBLE + self._k * width, self._frame)
        lines = -(-max(used, self._room) // _ALIGN)
        # Rows a multiple of a page apart share cache sets.
        return used, (lines | 1) * _ALIGN, -(-max(1, self._kd * width) // _ALIGN) * _ALIGN

    def _slot_nbytes(self, width: int) -> int:
        _, row, result = self._rows(width)
        return (self.size + self.owners) * row + self.parts * result
