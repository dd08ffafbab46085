"""Echo broadcast: every rank sends to all the digests of what it received."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mpisign.backend import arrays
from mpisign.engine.agreement import name_ranks
from mpisign.transports.base import Bytes, Steps
from mpisign.transports.tagged import TaggedTransport

#: Bytes of a digest, BLAKE2b. Half of them would not do: a hostile rank that may choose its
#: ballots finds two with one digest of 16 bytes after 2**64 tries.
DIGEST = 32


def digest(*parts: Any) -> Bytes:
    """BLAKE2b of contiguous uint8 arrays, on the host or a device, one after the other."""
    state = hashlib.blake2b(digest_size=DIGEST)
    for part in parts:
        host: Any = arrays.host(part)
        state.update(host)
    return np.frombuffer(state.digest(), dtype=np.uint8)


def quorum(size: int, f: int) -> int:
    """So many ranks that any two quorums share more than f, and so an honest one; or all."""
    return min(size, (size + f) // 2 + 1)


@dataclass(frozen=True)
class Echo:
    """The result of ``echo``. ``trusted``: by rank, whether a quorum received what this rank did.

    ``suspects``: if not all are trusted, ranks that are hostile, where that is ``certain``, else
    ranks of which one at least is.
    """

    trusted: list[bool]
    suspects: list[int]
    certain: bool = True

    def blame(self, what: str) -> str:
        """What was done, and by whom as far as this rank can tell."""
        names = name_ranks(self.suspects)
        if self.certain:
            return f"ranks were told different {what}: {names} sent them, or lied about what came"
        return (
            f"ranks were told different {what}: one of {names} sent them, or lied about what came; "
            "this rank cannot tell which, and the rest may be honest"
        )


def echo(wire: TaggedTransport, rows: Any, f: int) -> Steps[Echo]:
    """Compares ``rows``, uint8 (p, n), contiguous: what each rank sent here, this one included.

    Where f ranks at most are hostile, no two honest ranks trust a rank that told them different
    things. A rank that lies about what it was told can spoil the trust in honest ones only if
    p < 3 f + 1. Wire: each rank sends to all the digests of its rows, 32 p bytes; receives
    32 p (p - 1). Source: Cachin, Guerraoui and Rodrigues, Introduction to Reliable and Secure
    Distributed Programming, 2011, algorithm 3.16 (authenticated echo broadcast, quorums).
    """
    p = wire.size
    views = np.zeros((p, p, DIGEST), dtype=np.uint8)
    for rank, row in enumerate(rows):
        views[wire.rank, rank] = digest(row)
    yield wire.allgather(views[wire.rank].reshape(-1), views.reshape(p, -1))
    conflicts = (views != views[wire.rank]).any(axis=2)
    trusted = p - conflicts.sum(axis=0) >= quorum(p, f)
    if trusted.all():
        return Echo(trusted.tolist(), [])
    return Echo(trusted.tolist(), *_suspects(conflicts, wire.rank, f))


def _suspects(conflicts: npt.NDArray[np.bool_], own: int, f: int) -> tuple[list[int], bool]:
    """``conflicts[v, r]``: v claims that r sent it something else: v lies, or r sent two things.

    Whoever is in conflict with more than ``f`` ranks is hostile, as these cannot all be. Of two in
    conflict with each other either may be the one.
    """
    # This rank knows what it said itself; and nobody is told two things by itself.
    certain = conflicts[:, own] | conflicts.diagonal()
    left = conflicts & ~certain[:, None] & ~certain
    apart = (left | left.T).sum(axis=0)
    certain |= apart > min(f, (len(conflicts) - 1) // 2)  # fewer than half are hostile
    return np.flatnonzero(certain if certain.any() else apart > 0).tolist(), bool(certain.any())
