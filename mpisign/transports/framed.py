"""Parts as one message a rank, for wires whose exchange is one alltoall or allgather."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from mpisign.errors import WireError
from mpisign.transports.base import Bytes, Part
from mpisign.transports.pool import Pool

_LENGTH = np.dtype("<u8")
_UNSET = 0xFF  # in each byte: no possible length


def by_rank(parts: Sequence[Part], size: int) -> list[list[Bytes]]:
    """A list a rank: its parts in order."""
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


def host_pool() -> Pool:
    """A pool for messages: page faults of fresh memory cost more than the copy into it."""
    return Pool(lambda nbytes: np.empty(nbytes, dtype=np.uint8))


def starts(lengths: Sequence[int]) -> list[int]:
    """Where each message begins if they lie one after another."""
    return list(accumulate(lengths[:-1], initial=0))


def gather(grouped: Iterable[Iterable[Bytes]], memory: Bytes, starts: Iterable[int]) -> None:
    """Copies the parts of message i to ``memory``, from ``starts[i]`` on."""
    for start, parts in zip(starts, grouped, strict=True):
        for part in parts:
            memory[start : start + part.nbytes] = part
            start += part.nbytes


def scatter(memory: Bytes, starts: Iterable[int], grouped: Iterable[Iterable[Bytes]]) -> None:
    """The inverse of ``gather``: copies the bytes of message i into its parts."""
    for start, parts in zip(starts, grouped, strict=True):
        for part in parts:
            part[...] = memory[start : start + part.nbytes]
            start += part.nbytes


@functools.lru_cache(maxsize=256)
def _layout(lengths: tuple[int, ...]) -> tuple[list[int], npt.NDArray[np.intp], list[int]]:
    """(bytes of each message with its length, where the lengths lie, where the messages begin)."""
    counts = [_LENGTH.itemsize + n for n in lengths]
    first = np.array(starts(counts), dtype=np.intp)
    return (
        counts,
        first[:, None] + np.arange(_LENGTH.itemsize),
        (first + _LENGTH.itemsize).tolist(),
    )


class Framed:
    """Messages of known lengths in one array, each behind its length: 8 bytes, little-endian.

    For wires that do not report lengths. ``memory``: uint8 (sum(counts),), from ``pool`` until
    ``free``; ``counts``: bytes of each message with its length.
    """

    def __init__(self, lengths: Sequence[int], pool: Pool) -> None:
        self.due = lengths
        self.counts, self._heads, self._starts = _layout(tuple(lengths))
        self._lease = pool.take([sum(self.counts)])
        self.memory: Bytes = self._lease.slices[0]
        self.memory[self._heads] = _UNSET

    def free(self) -> None:
        """Returns the memory to the pool, once no wire uses it."""
        self._lease.give_back()

    def pack(self, grouped: Sequence[Iterable[Bytes]]) -> None:
        """Fills in the lengths, and the parts of each message."""
        heads = np.array(self.due, dtype=_LENGTH).view(np.uint8)
        self.memory[self._heads] = heads.reshape(self._heads.shape)
        gather(grouped, self.memory, self._starts)

    def unpack(self, grouped: Sequence[Iterable[Bytes]]) -> None:
        """Copies what arrived into the parts; WireError, naming the rank, for a wrong length."""
        unpack(self.memory, self.due, grouped)

    def unpack_first(self, rooms: Sequence[Sequence[Bytes]], due: Sequence[int]) -> None:
        """Copies what arrived into one room a message, which may be longer than is ``due``.

        WireError, naming the rank, for a length other than that.
        """
        sent = self.memory[self._heads].view(_LENGTH)[:, 0].tolist()
        for start, length, room in zip(self._starts, sent, rooms, strict=True):
            for memory in room:
                n = min(length, memory.nbytes)
                memory[:n] = self.memory[start : start + n]
        check_lengths(sent, due)


def unpack(memory: Bytes, due: Sequence[int], grouped: Sequence[Iterable[Bytes]]) -> None:
    """``Framed.unpack`` of memory from elsewhere, of any size."""
    counts, heads, starts = _layout(tuple(due))
    whole = memory
    if len(memory) < sum(counts):
        whole = np.full(sum(counts), _UNSET, dtype=np.uint8)
        whole[: len(memory)] = memory
    check_lengths(whole[heads].view(_LENGTH)[:, 0].tolist(), due)
    if len(memory) != sum(counts):
        raise WireError(f"rank {len(due) - 1} sent another length than it says")
    scatter(memory, starts, grouped)
