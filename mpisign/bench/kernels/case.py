"""A kernel as it is measured: the bytes it must move, what limits it, how it is called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mpisign.bench.kernels.stock import Stock
from mpisign.bench.measure import Call

Limit = Literal["read", "write", "copy"]

_FRESH = 4  # caches that lie between two uses of the same bytes


@dataclass(frozen=True)
class Calls:
    """The kernel on one set of arguments, and plain expressions on the same."""

    ours: Call
    plain: Mapping[str, Call] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """A kernel with its options. Bytes are per coordinate, of one call.

    ``read`` and ``written``: what any implementation must move; ``again``: the part of ``written``
    that overwrites what was read; ``spare``: memory that is reserved and not used in the end.
    ``main``: measured at every size, others at the largest only. ``goal``: share of ``limit`` on
    the CPU with one thread; GPU goals are one for all.
    """

    kernel: str
    variant: str
    limit: Limit
    read: float
    written: float
    build: Callable[[Stock, int], Calls]
    again: float = 0.0
    spare: float = 0.0
    n: int | None = None
    goal: float | None = None
    main: bool = False
    gpu_goal: bool = False
    needs_torch: bool = False

    def moved(self, length: int) -> int:
        """Bytes read and written for ``length`` coordinates."""
        return round(length * (self.read + self.written))

    def held(self, length: int) -> int:
        """Bytes of memory that one set of arguments takes."""
        return round(length * (self.read + self.written + self.spare - self.again))


class MeasuredDevice:
    """What Host and Cuda share: the memory of arguments, which calls alternate between."""

    def __init__(self, xp: Any, name: str, warm: bool, cache: int) -> None:
        self.xp, self.name, self.warm = xp, name, warm
        self.fresh = 0 if warm else _FRESH * cache
        self._stock = Stock(xp, name)
        self._arena = xp.empty(0, dtype="uint8")

    def stock(self, nbytes: int) -> Stock:
        """Memory for ``nbytes`` of arguments; arrays of an earlier call lose theirs."""
        self._stock.reserve(nbytes)
        return self._stock

    def copies(self, nbytes: int, length: int) -> int:
        """How many sets of ``nbytes`` of arguments the calls alternate between."""
        return 1 if self.warm else min(8192, 1 + self.fresh // max(1, nbytes))
