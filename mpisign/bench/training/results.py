"""What is measured of one method of training, what follows from it, and the goals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, median

from mpisign.bench.collectives.goals import GIGABIT
from mpisign.bench.collectives.nodes import Nodes
from mpisign.bench.measure import Timing
from mpisign.bench.record import Goal
from mpisign.bench.training.names import BASE, NONE
from mpisign.bench.training.trainer import Block

_PARAMETERS = 10_000_000  # of the model, from which goals apply
#: Times a step without communication, at most.
GOALS = {
    "mpi-at-step-signum": 1.06,
    "mpi-signum": 1.06,
    "ddp-signum": 1.12,
    "horovod-signum": 1.12,
}


@dataclass(frozen=True)
class TrainingRow:
    """One method. ``error``: why there is no more. ``identical``: None where nothing is sent."""

    method: str
    ours: bool
    lr: float | None = None
    error: str = ""
    identical: bool | None = None


@dataclass(frozen=True)
class StepRow(TrainingRow):
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
        return median(found) if found else None

    @property
    def cpu(self) -> float:
        """Processor time of a rank, median of the rounds."""
        return median(b.cpu for b in self.blocks)


def beside(rows: Sequence[StepRow]) -> list[StepRow]:
    """``rows`` with the ratios to other rows."""
    seconds = {r.method: [b.seconds for b in r.blocks] for r in rows if r.blocks and not r.error}

    def by(above: Sequence[float] | None, below: Sequence[float] | None) -> Timing | None:
        if not above or not below:
            return None
        return Timing.of([a / b for a, b in zip(above, below, strict=True)])

    found = []
    for row in rows:
        if own := seconds.get(row.method):
            ratio, faster = by(own, seconds.get(NONE)), by(seconds.get(BASE), own)
            row = replace(row, time=Timing.of(own), ratio=ratio, faster=faster)
        found.append(row)
    return found


@dataclass(frozen=True)
class Point:
    """Test accuracy, in [0, 1], after a number of steps and seconds of training."""

    step: int
    seconds: float
    accuracy: float


@dataclass(frozen=True)
class Run:
    """One method's training with one seed, to the end of its schedule."""

    seed: int
    curve: list[Point]
    counted: float | None
    identical: bool | None

    def first(self, accuracy: float) -> Point | None:
        """The first evaluation at ``accuracy`` or above."""
        return next((p for p in self.curve if p.accuracy >= accuracy), None)


@dataclass(frozen=True)
class AccuracyRow(TrainingRow):
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
        """Where the accuracy was reached; empty unless every seed reached it."""
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
    base = next((r.seconds for r in rows if r.method == BASE and r.runs), None)
    return [
        replace(row, less=base / own) if base and row.runs and (own := row.seconds) else row
        for row in rows
    ]


@dataclass(frozen=True)
class MemoryRow(TrainingRow):
    """Bytes of the rank that needs most. ``state``: what a checkpoint of the method holds.

    Peaks during a step, beyond those of the step without communication and its momentum:
    ``traced``: by Python's tracemalloc, which sees all of NumPy's memory; ``resident``: by the
    kernel, all libraries' memory, without ``state``. ``plane``: d / 8; ``bucket``: the largest
    bucket's gradients, where there are several buckets.
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


def goals(rows: Sequence[TrainingRow], nodes: Nodes, parameters: int) -> Iterator[Goal]:
    """Goals of steps at 2 nodes and of accuracy at 4, in netlab at 1 Gbit/s; of memory anywhere."""
    for row in rows:
        if isinstance(row, MemoryRow) and row.ours and row.traced is not None and row.limit:
            what = f"{row.method}: memory / limit"
            yield Goal(what, parameters, row.traced / row.limit, "<= 1")
    alone = nodes.count == len(nodes.of)  # a rank a node
    if nodes.rate != GIGABIT or not alone or parameters < _PARAMETERS:
        return
    for row in rows:
        wanted = GOALS.get(row.method)
        if isinstance(row, StepRow) and row.ratio and wanted and nodes.count == 2:
            what = f"{row.method}: step / without communication"
            yield Goal(what, parameters, row.ratio.median, f"<= {wanted:g}")
    if nodes.count != 4:
        return
    measured = [row for row in rows if isinstance(row, AccuracyRow) and row.runs]
    base = next((row for row in measured if row.method == BASE), None)
    ours = [row for row in measured if row.ours]
    if base is None or not ours:
        return
    for row in ours:
        if row.less is not None:
            what = f"{row.method}: times less time to {row.wanted:.0%} than fp16"
            yield Goal(what, parameters, row.less, ">= 5")
    best = max(ours, key=lambda row: fmean(row.final))
    points = 100 * (fmean(base.final) - fmean(best.final))
    yield Goal(f"{best.method}: points of accuracy below fp16", parameters, points, "<= 0.5")
