"""The interface between collectives and wires: bytes from rank to rank, nothing else."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]


class Pending(Protocol):
    """An exchange under way."""

    def done(self) -> bool:
        """True once ``wait`` would return at once; never blocks."""

    def wait(self) -> Any:
        """Blocks until the exchange is over; the received array. May be called once."""


class Over:
    """An exchange that was over when it returned, or that needed no wire."""

    def __init__(self, received: Any) -> None:
        self._received = received

    def done(self) -> bool:
        return True

    def wait(self) -> Any:
        return self._received


class Transport(Protocol):
    """What a collective needs of a wire.

    Every method is collective: all ranks call the same methods in the same order, with counts that
    fit together. Counts are bytes, one per rank, and are known to the receiver beforehand; an
    implementation raises WireError if other than that arrives. Implementations book the bytes that
    leave and reach this rank (its own part not counted) with ``mpisign.stats``.
    """

    name: str
    rank: int
    size: int

    def start_allgatherv(self, send: Bytes, counts: Sequence[int]) -> Pending:
        """Every rank's ``send``, one after another in rank order: uint8 (sum(counts),)."""

    def start_alltoallv(
        self, send: Bytes, sendcounts: Sequence[int], recvcounts: Sequence[int]
    ) -> Pending:
        """Slice r of ``send`` goes to rank r; what arrives, in rank order: (sum(recvcounts),)."""

    def start_allreduce(self, values: npt.NDArray[Any]) -> Pending:
        """Sum over the ranks, float32 or float64, in the wire's own reduction: same shape.

        The baseline that votes are measured against: may be over before it returns.
        """


T = TypeVar("T")
#: A collective: yields exchanges, is sent what they received, returns its result.
Steps = Generator[Pending, Any, T]


def run(steps: Steps[T]) -> T:
    """Drives a collective to its result, blocking."""
    try:
        pending = next(steps)
        while True:
            pending = steps.send(pending.wait())
    except StopIteration as stop:
        result: T = stop.value
        return result
