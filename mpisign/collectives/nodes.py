"""Which ranks share a node, and so a network link."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Sequence

import numpy as np

from mpisign.errors import DisagreementError
from mpisign.transports.base import Steps
from mpisign.transports.tagged import TaggedTransport

_NBYTES = 16
_GIVEN, _FOUND = b"g", b"f"


def find_nodes(wire: TaggedTransport, given: Sequence[int] | None) -> Steps[list[list[int]]]:
    """The ranks of each node, nodes in the order of their first ranks; agreed by all ranks.

    ``given``: a number for each rank's node, the same list on all ranks; None: ranks whose host
    names are equal share a node. Wire: 16 bytes a rank, "g" or "f" and 15 of BLAKE2b over the list
    or the host name. DisagreementError if ranks were given different lists, or only some were.
    """
    said = socket.gethostname() if given is None else repr(list(given))
    digest = hashlib.blake2b(said.encode(), digest_size=_NBYTES - 1).digest()
    word = (_FOUND if given is None else _GIVEN) + digest
    rows = np.empty((wire.size, _NBYTES), dtype=np.uint8)
    yield wire.allgather(np.frombuffer(word, dtype=np.uint8), rows)
    words = [row.tobytes() for row in rows]
    if any(w[:1] == _GIVEN for w in words):
        if len(set(words)) > 1:
            raise DisagreementError("Communicator: nodes must be the same list on all ranks")
        assert given is not None
        return grouped(given)
    return grouped(words)


def grouped(keys: Sequence[object]) -> list[list[int]]:
    """Ranks with equal keys, in the order of the first rank of each group."""
    groups: dict[object, list[int]] = {}
    for rank, key in enumerate(keys):
        groups.setdefault(key, []).append(rank)
    return list(groups.values())
