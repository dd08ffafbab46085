"""One kernel as it is measured: what it must move, what limits it, how it is called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mpisign.bench.stock import Stock

Limit = Literal["read", "write", "copy"]
Call = Callable[[], Any]


@dataclass(frozen=True)
class Calls:
    """One set of arguments: the kernel on it, and the plain ways on the same."""

    ours: Call
    plain: Mapping[str, Call] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """A kernel with its options. Bytes are per coordinate, of one call.

    ``read`` and ``written``: what the operation must move, however it is done; ``again``: the part
    of ``written`` that lies where it was read; ``spare``: room that is not needed in the end.
    ``main``: measured at every size, others at the largest only. ``goal``: of ``limit``, on the CPU
    with one thread; GPU goals are one for all.
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
