"""gather_planes: messages of unequal lengths, coded planes, from every rank to every rank."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mpisign import planes
from mpisign.collectives.vote_task import Planes
from mpisign.engine.pipeline import pipelined
from mpisign.errors import WireError
from mpisign.stats import stage
from mpisign.transports.base import Bytes, Pending, Steps
from mpisign.transports.tagged import TaggedTransport

_MOST = 1024  # chunks


def gather_planes(wire: TaggedTransport, message: Bytes, limit: int) -> Steps[list[Bytes]]:
    """Every rank's message, by rank, the own one too: new uint8 (n,) in host memory.

    ``message``: contiguous uint8 (n,), any length up to ``limit``, which is the same on all ranks
    (``planes.coded_bytes_bound``) and is what the messages of others are held to.

    Receives 8 (p - 1) bytes and the others' messages. Wire: 8 bytes, the length of the message,
    little-endian; then the message, in as many pieces as the longest of all is times
    ``Transport.message`` long. Raises WireError, the same on all ranks, that names the first rank
    whose message would be longer than ``limit``. What the messages hold is not looked at.
    """
    told = np.empty((wire.size, 8), dtype=np.uint8)
    yield wire.allgather(np.array([message.size], dtype="<u8").view(np.uint8), told)
    sizes = told.view("<u8")[:, 0].tolist()
    for rank, size in enumerate(sizes):
        if size > limit:
            raise WireError(f"rank {rank} has a message of {size} bytes where {limit} is the most")
    rows = [np.empty(size, dtype=np.uint8) for size in sizes]
    yield from gather_rows(wire, message, rows)
    return rows


def gather_rows(wire: TaggedTransport, message: Bytes, rows: Sequence[Bytes]) -> Steps[None]:
    """Every rank's message into ``rows``, uint8 (n,) of its own length each, known to all.

    Wire: the messages, in as many pieces as the longest is times ``Transport.message`` long.
    """
    n = max(1, min(_MOST, max(row.size for row in rows) // wire.transport.message))

    def send(i: int) -> Pending:
        pieces = [row[row.size * i // n : row.size * (i + 1) // n] for row in rows]
        own = message[message.size * i // n : message.size * (i + 1) // n]
        return wire.allgather(own, pieces, bulk=n > 1)

    yield from pipelined(n, send, lambda i: None)


def decode_rows(
    messages: Sequence[Bytes], length: int, ranks: Sequence[int] | None = None
) -> Planes:
    """The planes of every rank's message of ``length`` coordinates: uint8 (p, 2, B).

    Raises WireError, the same on all ranks that were sent the same, that names the first rank whose
    message is none of ``planes.encode`` and says what is wrong with it. ``ranks``: of the messages,
    default 0, 1, ...
    """
    rows = np.empty((len(messages), 2, planes.plane_bytes(length)), dtype=np.uint8)
    with stage("unpack"):
        for i, message in enumerate(messages):
            try:
                planes.decode(message, length, out=rows[i])
            except WireError as error:
                text = str(error).removeprefix("decode: ")
                rank = i if ranks is None else ranks[i]
                raise WireError(f"rank {rank} sent {text}") from None
    return rows
