"""Sends honest ranks' gradients to hostile ranks: not part of any vote, not in the statistics."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mpisign.communicator import Communicator
from mpisign.errors import DisagreementError, WireError
from mpisign.transports.base import Steps
from mpisign.transports.tagged import TaggedTransport, UncountedTransport

_FUNCTION = "Adversaries.gradients"
_MAGIC = 0x4D50_4953_4144_5631  # "MPISADV1"
_FIELDS = ("magic", "length", "bytes a coordinate", "attack and hostile ranks")
_DIGEST = 3  # among them, not shown in messages
_PIECE = 1 << 20  # bytes of a row in flight, or held, at once

#: ``reduce(rows, first, length)``: rows (n, b), from coordinate ``first`` on, to (k, b) to keep.
Reduce = Callable[[Any, int, int], Any]


def honest_rows(
    comm: Communicator,
    hostile: Sequence[int],
    own: Any,
    reduce: Reduce | None,
    *,
    pieces: bool = True,
    about: str = "",
) -> Any:
    """``reduce`` of the honest ranks' vectors ``own``, on hostile ranks, else None. Collective.

    ``reduce`` is given on hostile ranks, and called piece by piece, or once without ``pieces``.
    Raises, on all ranks, DisagreementError if d, dtype, ``about`` or ``hostile`` differ, WireError.

    Wire: to all, 32 bytes (magic, length, bytes per coordinate, 8 of BLAKE2b over ``about`` and the
    hostile ranks); then, piece by piece, coordinates from each honest rank to each hostile one.
    """
    honest = [r for r in range(comm.size) if r not in hostile]
    digest = hashlib.blake2b(f"{about} {list(hostile)}".encode(), digest_size=8).digest()
    head = np.array(
        [_MAGIC, len(own), own.itemsize, int.from_bytes(digest, "little", signed=True)], dtype="<i8"
    )

    def steps(wire: TaggedTransport) -> Steps[Any]:
        wire = UncountedTransport(wire.transport, wire.tag)
        heads = np.empty((wire.size, head.nbytes), dtype=np.uint8)
        yield wire.allgather(head.view(np.uint8), heads)
        _check(heads.view("<i8"))
        length: int = len(own)
        result: Any = None
        step = _PIECE // own.itemsize if pieces else max(1, length)
        for first in range(0, max(1, length), step):
            b = min(step, length - first)
            if reduce is None:
                part = own[first : first + b].view(np.uint8)
                yield wire.exchange([(r, part) for r in hostile], [])
                continue
            rows = np.empty((len(honest), b), dtype=own.dtype)
            recvs = [(r, rows[i].view(np.uint8)) for i, r in enumerate(honest)]
            yield wire.exchange([], recvs)
            kept = reduce(rows, first, length)
            if result is None:
                result = np.empty((len(kept), length), dtype=kept.dtype)
            result[:, first : first + b] = kept
        return result

    return comm.engine.submit(_FUNCTION, steps).wait()


def _check(heads: Any) -> None:
    """Raises the same error on every rank that received the same headers."""
    strange = [r for r, row in enumerate(heads) if row[0] != _MAGIC]
    if strange:
        raise WireError(f"rank {strange[0]} sent no header of this side channel")
    for i, field in enumerate(_FIELDS):
        values = heads[:, i].tolist()
        if len(set(values)) > 1:
            other = next(r for r, v in enumerate(values) if v != values[0])
            a, b = ("", "") if i == _DIGEST else (f" {values[0]} on", f" {values[other]} on")
            raise DisagreementError(
                f"{_FUNCTION}: ranks differ in {field}:{a} rank 0,{b} rank {other}"
            )
