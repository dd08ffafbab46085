"""Digests of all results, compared every so many calls: replicas that part are noticed.

Of results in host memory each is hashed: by BLAKE2b every ``every``-th one, by XXH64 the others,
which docs/results/checks.md measures. XXH64 shows whatever happens by accident, and every
equivocation that does not look for collisions; ``every`` = 1 leaves BLAKE2b alone. Of results on a
GPU, which would have to be copied, every ``every``-th one is hashed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from typing import Any

from mpisign import _kernels
from mpisign.backend import arrays


def check_every() -> int:
    """``MPISIGN_CHECK_EVERY``, default 16; ValueError if it is no number from 0."""
    text = os.environ.get("MPISIGN_CHECK_EVERY", "16")
    if not (text.isascii() and text.isdecimal()):
        raise ValueError(f"MPISIGN_CHECK_EVERY must be a number from 0, got {text!r}")
    return int(text)


_NOTHING = bytes(32)


class ParameterDigest:
    """32 bytes for a header's ``replica`` field: 2, 0, then 30 of BLAKE2b over the parameters."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=30)

    def update(self, data: Any) -> None:
        """More of them: bytes, or a contiguous array of any framework."""
        self._hash.update(data if isinstance(data, bytes) else arrays.host(data))  # type: ignore[arg-type]

    def field(self) -> bytes:
        """The 32 bytes."""
        return b"\2\0" + self._hash.digest()


class ResultHash:
    """Of one call's result, piece by piece in an order that is the same on all ranks."""

    __slots__ = ("_hash", "_sum", "number")

    def __init__(self, number: int, strong: bool) -> None:
        self.number, self._sum = number, 0
        self._hash = hashlib.blake2b(digest_size=32) if strong else None

    def update(self, data: Any) -> None:
        """A contiguous array of any framework."""
        if self._hash is not None:
            self._hash.update(arrays.host(data))  # type: ignore[arg-type]
            return
        host: Any = arrays.host(data)
        self._sum = _kernels.hash_bytes(_kernels.address(host), host.nbytes, self._sum)

    def update_pieces(self, planes: Iterable[Any], table: tuple[int, int]) -> None:
        """Contiguous arrays in host memory; ``table``: int64 (n, 2), their addresses and bytes."""
        if self._hash is None:
            self._sum = _kernels.hash_pieces(*table, self._sum)
            return
        for plane in planes:
            self._hash.update(plane)

    def digest(self) -> bytes:
        """32 bytes of BLAKE2b, or 8 of XXH64."""
        return self._sum.to_bytes(8, "little") if self._hash is None else self._hash.digest()


class ReplicaRecord:
    """The hashes of all results of one communicator, chained into a digest every ``every`` calls.

    Calls are numbered, alike on all ranks, and may end in any order.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self._ended: dict[int, bytes] = {}  # that the chain has not
        self._chain = hashlib.blake2b(digest_size=30)
        self._window, self._field = 0, _NOTHING

    def begin(self, number: int, on_host: bool = True) -> ResultHash | None:
        """What is to hash the result of call ``number``, if anything."""
        due = self.every > 0 and (number + 1) % self.every == 0
        return ResultHash(number, due) if due or (self.every and on_host) else None

    def end(self, result: ResultHash | None) -> None:
        """The call has ended well."""
        if result is not None:
            self._ended[result.number] = result.digest()

    def add(self, number: int, *results: Any) -> None:
        """The result of call ``number``: contiguous arrays in host memory."""
        result = self.begin(number)
        if result is not None:
            for array in results:
                result.update(array)
            self.end(result)

    def field(self, settled: int) -> bytes:
        """What a header's ``replica`` field carries: 1, a number (modulo 256) and 30 bytes of
        BLAKE2b over the last whole window of the first ``settled`` calls and all before; or zeros.
        """
        if not self.every:
            return _NOTHING
        window = settled // self.every
        if window > self._window:
            for number in sorted(n for n in self._ended if n < window * self.every):
                self._chain.update(number.to_bytes(8, "little") + self._ended.pop(number))
            self._window = window
            self._field = bytes([1, window % 256]) + self._chain.digest()
        return self._field if window == self._window else _NOTHING
