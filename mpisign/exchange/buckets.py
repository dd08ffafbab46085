"""Many gradients, one plane: where each tensor lies in the bucket that travels as one ballot."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from mpisign import planes


class Bucket:
    """The layout of a bucket.

    Each member starts at a byte of its own, so that members are packed and unpacked independently.
    The up to 7 bits between members belong to nobody: they are packed as 0 and never unpacked.
    ``nbytes``: bytes of one plane of the bucket; ``length``: its coordinates, padding included.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = tuple(lengths)
        offsets, at = [], 0
        for n in self.lengths:
            offsets.append(at)
            at += planes.plane_bytes(n)
        self.offsets = tuple(offsets)
        self.nbytes = at
        self.length = 8 * at

    def span(self, member: int) -> slice:
        """The bytes of one member within a plane of the bucket."""
        start = self.offsets[member]
        return slice(start, start + planes.plane_bytes(self.lengths[member]))

    def identity(self, names: Sequence[str]) -> int:
        """64 bits of BLAKE2b over names and lengths: ranks that lay out otherwise are found out."""
        digest = hashlib.blake2b(digest_size=8)
        for name, length in zip(names, self.lengths, strict=True):
            digest.update(f"{len(name)}:{name}={length};".encode())
        return int.from_bytes(digest.digest(), "little")
