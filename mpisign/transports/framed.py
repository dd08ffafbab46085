"""Parts as one message for each rank, for wires whose exchange is one alltoall or allgather."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from mpisign.errors import WireError
from mpisign.transports.base import Bytes, Part

_LENGTH = np.dtype("<u8")
_UNSET = 0xFF  # in each byte of a length: none that memory can hold


def by_rank(parts: Sequence[Part], size: int) -> list[list[Bytes]]:
    """The parts of each rank, in their order: a list a rank."""
    grouped: list[list[Bytes]] = [[] for _ in range(size)]
    for rank, part in parts:
        grouped[rank].append(part)
    return grouped


def lengths(grouped: Iterable[Iterable[Bytes]]) -> list[int]:
    """Bytes of each rank's message."""
    return [sum(part.nbytes for part in parts) for parts in grouped]


def check_lengths(sent: Iterable[int], due: Iterable[int]) -> None:
    """WireError, naming the first rank that sent another length than was due."""
    for rank, (got, expected) in enumerate(zip(sent, due, strict=True)):
        if got != expected:
            raise WireError(f"rank {rank} sent {got} bytes where {expected} were due")


def gather(grouped: Iterable[Iterable[Bytes]], memory: Bytes, starts: Iterable[int]) -> None:
    """Copies the parts of message i, one after another, to ``memory`` from ``starts[i]`` on."""
    for start, parts in zip(starts, grouped, strict=True):
        for part in parts:
            memory[start : start + part.nbytes] = part
            start += part.nbytes


def scatter(memory: Bytes, starts: Iterable[int], grouped: Iterable[Iterable[Bytes]]) -> None:
    """The way back: copies the bytes of message i into its parts."""
    for start, parts in zip(starts, grouped, strict=True):
        for part in parts:
            part[...] = memory[start : start + part.nbytes]
            start += part.nbytes


class Framed:
    """Messages of known lengths in one array, each behind its length: 8 bytes, little-endian.

    For wires that tell no lengths, or take a short message without a word. ``memory``: uint8
    (sum(counts),); ``counts``: bytes of each message with its length.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        self.due = lengths
        self.counts = [_LENGTH.itemsize + n for n in lengths]
        ends = np.cumsum(self.counts)
        self._heads = (ends - self.counts)[:, None] + np.arange(_LENGTH.itemsize)
        self._starts = [end - n for end, n in zip(ends.tolist(), lengths, strict=True)]
        self.memory: Bytes = np.empty(int(ends[-1]), dtype=np.uint8)
        self.memory[self._heads] = _UNSET

    def pack(self, grouped: Sequence[Iterable[Bytes]]) -> None:
        """Fills in the lengths, and the parts of each message."""
        heads = np.array(self.due, dtype=_LENGTH).view(np.uint8)
        self.memory[self._heads] = heads.reshape(self._heads.shape)
        gather(grouped, self.memory, self._starts)

    def unpack(self, grouped: Sequence[Iterable[Bytes]]) -> None:
        """Copies what came into the parts; WireError, naming the rank, if a length is wrong."""
        check_lengths(self.memory[self._heads].view(_LENGTH)[:, 0].tolist(), self.due)
        scatter(self.memory, self._starts, grouped)
