"""The preamble of a plan's first messages: agreement without an exchange of its own.

What never changes between the calls of a plan was agreed by headers when it was made. What may
change travels in front of the planes that go anyway. Wire layout, little-endian, 64 bytes: magic
"MPSP", NaNs u32 (2^32 - 1 stands for more), terms 8 bytes (BLAKE2b over the agreed headers but for
what follows), step u64, settings u64, replica digest 32 bytes (see ``header``). A rank that asks
all to stop has the magic "MPSS". If a preamble differs, counts NaNs or asks, ranks exchange headers
next: each sent its own to all others, so that all see it.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from mpisign.engine.header import SHORT_ABOVE
from mpisign.transports.base import Bytes, FirstRound, Part, Prepared, Transport

if TYPE_CHECKING:
    from mpisign.engine.agreement import Agreed

_PREAMBLE = struct.Struct("<4sI8sQQ32s")
_MAGIC, _STOP = b"MPSP", b"MPSS"
#: Bytes of a preamble.
PREAMBLE = _PREAMBLE.size
_NANS = slice(4, 8)
_MOST_NANS = (1 << 32) - 1


def terms_of(agreed: Agreed, message: int) -> bytes:
    """8 bytes that stand for what all ranks agreed on: equal only where all of it is.

    ``message``: the transport's, by which planes are cut.
    """
    digest = hashlib.blake2b(agreed.header.terms(), digest_size=8)
    digest.update(message.to_bytes(8, "little"))
    digest.update(repr(agreed.weights).encode())
    for presence in agreed.presences:
        digest.update(presence)
    return digest.digest()


class Preambles:
    """Where a plan's messages have their preambles: in front of ``sends`` and ``recvs``."""

    def __init__(self, sends: Sequence[Part], recvs: Sequence[Part]) -> None:
        self._own = list({id(part): part[:PREAMBLE].data for _, part in sends}.values())
        self._others = [part[:PREAMBLE].data for _, part in recvs]
        self._ranks = [rank for rank, _ in recvs]

    def fill(
        self,
        terms: bytes,
        step: int,
        settings: int,
        nans: int,
        replica: bytes = bytes(32),
        magic: bytes = _MAGIC,
    ) -> bytes:
        """Writes this rank's preamble into what it sends, and returns it."""
        nans = min(nans, _MOST_NANS)
        preamble = _PREAMBLE.pack(magic, nans, terms, step, settings, replica)
        for memory in self._own:
            memory[:] = preamble
        return preamble

    def nans(self, own: int) -> list[int]:
        """The NaNs that each rank counts, ``own`` of this one."""
        nans = [own] * (len(self._ranks) + 1)
        for r, memory in zip(self._ranks, self._others, strict=True):
            nans[r] = int.from_bytes(memory[_NANS], "little")
        return nans


class FirstMessages(Preambles):
    """The first messages of a plan: one part for every other rank. ``rooms``: see ``Prepared``."""

    def __init__(
        self,
        transport: Transport,
        sends: Sequence[Part],
        recvs: Sequence[Part],
        rooms: Sequence[Bytes],
    ) -> None:
        super().__init__(sends, recvs)
        # Among many ranks digests of headers go first, and this is no first round.
        prepare = (
            transport.prepare if transport.size <= SHORT_ABOVE else partial(Prepared, transport)
        )
        self._prepared = prepare(sends, recvs, rooms)
        self._stated, self._good = b"", False

    def start(
        self,
        tag: int,
        terms: bytes,
        step: int,
        settings: int,
        nans: int,
        replica: bytes,
        stop: bool = False,
    ) -> FirstRound:
        """Starts the first round. ``replica``: from ``Engine.take_digest``. ``stop``: asks all to
        stop, in the headers that then follow."""
        magic = _STOP if stop else _MAGIC
        self._stated = self.fill(terms, step, settings, nans, replica, magic)
        self._good = not (nans or stop)
        return self._prepared.start(tag)

    def same(self, first: FirstRound) -> bool:
        """Once it is over: whether all ranks call the same, without NaNs and requests."""
        if first.wrong or not self._good:
            return False
        stated = self._stated
        for memory in self._others:
            if memory != stated:
                return False
        return True

    def free(self) -> None:
        """Releases the transport's requests."""
        self._prepared.free()
