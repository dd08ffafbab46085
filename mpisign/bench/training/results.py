"""What is measured of one way, and what follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean
from typing import Any

import numpy as np

from mpisign.bench.results import Timing
from mpisign.bench.training.names import BASE, NONE
from mpisign.bench.training.trainer import Block


@dataclass(frozen=True)
class Row:
    """One way. ``error``: why there is nothing else. ``identical``: None where nothing is sent."""

    way: str
    ours: bool
    lr: float | None = None
    error: str = ""
    identical: bool | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class StepRow(Row):
    """Seconds, bytes of a step. ``ratio``: to the step without communication of the same round.

    ``faster``: Horovod's fp16 step of the same round by this one. ``blocks``: each round's.
    """

    blocks: list[Block] = field(default_factory=list)
    time: Timing | None = None
    ratio: Timing | None = None
    faster: Timing | None = None

    @property
    def counted(self) -> float | None:
        """Bytes at a node's interface, median of the rounds."""
        found = [b.counted for b in self.blocks if b.counted is not None]
        return float(np.median(found)) if found else None

    @property
    def cpu(self) -> float:
        """Processor time of a rank, median of the rounds."""
        return float(np.median([b.cpu for b in self.blocks]))


def beside(rows: Sequence[StepRow]) -> list[StepRow]:
    """``rows`` with what follows from all of them."""
    seconds = {r.way: [b.seconds for b in r.blocks] for r in rows if r.blocks and not r.error}

    def by(above: Sequence[float] | None, below: Sequence[float] | None) -> Timing | None:
        if not above or not below:
            return None
        return Timing.of([a / b for a, b in zip(above, below, strict=True)])

    found = []
    for row in rows:
        own = seconds.get(row.way)
        if own:
            row = replace(
                row,
                time=Timing.of(own),
                ratio=by(own, seconds.get(NONE)),
                faster=by(seconds.get(BASE), own),
            )
        found.append(row)
    return found


@dataclass(frozen=True)
class Point:
    """Test accuracy, in [0, 1], after so many steps and seconds of training."""

    step: int
    seconds: float
    accuracy: float


@dataclass(frozen=True)
class Run:
    """One way's training with one seed, to the end of its schedule."""

    seed: int
    curve: list[Point]
    counted: float | None
    identical: bool | None

    def first(self, accuracy: float) -> Point | None:
        """The first evaluation at ``accuracy`` or above."""
        return next((p for p in self.curve if p.accuracy >= accuracy), None)


@dataclass(frozen=True)
class AccuracyRow(Row):
    """``wanted``: the fixed accuracy. ``less``: how many times less time than BASE to reach it."""

    wanted: float = 0.0
    runs: list[Run] = field(default_factory=list)
    less: float | None = None

    @property
    def final(self) -> list[float]:
        """Accuracy at the end, a seed each."""
        return [r.curve[-1].accuracy for r in self.runs]

    @property
    def seconds_per_step(self) -> float:
        """Mean over seeds."""
        return fmean(r.curve[-1].seconds / r.curve[-1].step for r in self.runs)

    @property
    def reached(self) -> list[Point]:
        """Where the accuracy was reached; empty unless it was with every seed."""
        found = [p for r in self.runs if (p := r.first(self.wanted)) is not None]
        return found if len(found) == len(self.runs) else []

    @property
    def seconds(self) -> float | None:
        """To the accuracy, mean over seeds."""
        return fmean(p.seconds for p in self.reached) if self.reached else None

    @property
    def steps(self) -> float | None:
        """To the accuracy, mean over seeds."""
        return fmean(p.step for p in self.reached) if self.reached else None


def less_than_base(rows: Sequence[AccuracyRow]) -> list[AccuracyRow]:
    """``rows`` with how many times less time they take than the BASE row."""
    base = next((r.seconds for r in rows if r.way == BASE and r.runs), None)
    found = []
    for row in rows:
        own = row.seconds if row.runs else None
        found.append(replace(row, less=base / own) if base and own else row)
    return found


@dataclass(frozen=True)
class MemoryRow(Row):
    """Bytes of the rank that needs most. ``state``: what a checkpoint of the way holds.

    Peaks during a step, beyond those of the step without communication and its momentum:
    ``traced``: what Python's tracemalloc sees, all of NumPy's memory with it; ``resident``: the
    kernel's, all libraries' memory, without ``state``. ``plane``: d / 8; ``bucket``: the
    largest bucket's gradients, where they travel in several.
    """

    state: int | None = None
    traced: int | None = None
    resident: int | None = None
    plane: int = 0
    bucket: int | None = None

    @property
    def limit(self) -> int | None:
        """One plane and one bucket."""
        return None if self.bucket is None else self.plane + self.bucket
