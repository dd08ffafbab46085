"""``mpisign bench detox``: a step of DETOX beside plain robust rules, as the ranks grow in number.

All ranks are threads of this process and compute in turns.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch

import mpisign
from mpisign import simulation
from mpisign.bench import report
from mpisign.bench.detox_shown import SHOWN
from mpisign.bench.kernels.host import Host
from mpisign.bench.measure import Timing
from mpisign.bench.peers import byzfl
from mpisign.bench.progress import Attempts, progress
from mpisign.bench.record import Record
from mpisign.bench.settings import DetoxSettings
from mpisign.compressors import Compressor
from mpisign.compressors.detox import Detox
from mpisign.compressors.robust import Robust
from mpisign.compressors.signum import Signum
from mpisign.experiments import model
from mpisign.partition import assign
from mpisign.robust.names import by_name
from mpisign.transports.threads import TURN

#: Rows that a rule with f of them hostile needs, at least: the most that any rule asks (Bulyan).
_EACH, _REST = 4, 3
_INPUTS, _CLASSES = 784, 10


@dataclass(frozen=True)
class DetoxMethod:
    """One row of a number of ranks.

    ``kind``: "vote" of signs; "robust": a rule over gradients, both as collectives; "here": the
    rule on the same rows in one place; "byzfl": ByzFL's. ``groups``: the number of groups of ranks,
    0 for none. ``f``: hostile rows that the rule is made for.
    """

    kind: Literal["vote", "robust", "here", "byzfl"]
    rule: str
    groups: int = 0
    f: int = 0
    redundancy: int = 0

    @property
    def collective(self) -> bool:
        """Whether ranks send anything."""
        return self.kind in ("vote", "robust")

    @property
    def label(self) -> str:
        if not self.collective:
            return f"{self.rule}, {'one place' if self.kind == 'here' else 'ByzFL'}"
        return f"{self.rule}, DETOX {self.redundancy}" if self.groups else self.rule

    @property
    def compressor(self) -> Compressor:
        """The ``compression`` of ``DistributedOptimizer``."""
        inner = Signum() if self.kind == "vote" else Robust(rule=by_name(self.rule, self.f))
        return Detox(redundancy=self.redundancy, inner=inner) if self.groups else inner


def methods(ranks: int, redundancy: int, rules: tuple[str, ...]) -> Iterator[DetoxMethod]:
    """All of a number of ranks: each rule with as many hostile rows as Bulyan can take."""

    def hostile(rows: int) -> int:
        return max(0, (rows - _REST) // _EACH)

    groups = ranks // redundancy
    yield DetoxMethod("vote", "signum")
    yield DetoxMethod("vote", "signum", groups, redundancy=redundancy)
    for rule in rules:
        yield DetoxMethod("robust", rule, f=hostile(ranks))
        yield DetoxMethod("robust", rule, groups, hostile(groups), redundancy)
        yield DetoxMethod("here", rule, f=hostile(ranks))
        yield DetoxMethod("byzfl", rule, f=hostile(ranks))


@dataclass(frozen=True)
class DetoxRow:
    """``error``: why there is nothing else. Seconds and bytes of one step.

    ``work``: processor time of all ranks together; ``wall``: by the clock, the ranks taking turns
    on one core; ``computing``: packing, hashing, rules, tallies and unpacking, without messages and
    the Python around them, the least of all turns. ``sent``: bytes that a rank sends, mean.
    ``of_plain``: work / that of the same rule without groups.
    """

    DERIVED: ClassVar = ("label", "of_rank")

    method: DetoxMethod
    ranks: int
    work: Timing | None = None
    wall: Timing | None = None
    computing: float | None = None
    sent: float | None = None
    of_plain: float | None = None
    error: str | None = None

    @property
    def label(self) -> str:
        return self.method.label

    @property
    def of_rank(self) -> float | None:
        """A rank's part of the work, on average."""
        return self.work.median / self.ranks if self.work else None


@dataclass(frozen=True)
class Growth:
    """A method's exponents a: its work, and computing, grow as ranks^a, by least squares."""

    method: str
    work: float
    computing: float | None


@dataclass(kw_only=True)
class DetoxRecord(Record):
    """One run of ``mpisign bench detox``. ``parameters``: those of the model."""

    parameters: int
    growth: list[Growth] = field(default_factory=list)


def run(settings: DetoxSettings, command: str) -> int:
    """Measures and reports; the exit status. Raises SettingsError."""
    record = DetoxRecord(
        name=settings.NAME, command=command, settings=settings,
        parameters=parameters(settings.size),
    )  # fmt: skip
    report.check(record, SHOWN)
    with Host(warm=True).threads(1):  # as on a node with a rank a core
        return report.run(record, SHOWN, lambda: _measure(record))


def _measure(record: DetoxRecord) -> None:
    """Fills ``record``: all methods of a number of ranks in turns."""
    s: DetoxSettings = record.settings
    each = len(list(methods(s.ranks[0], s.redundancy, s.rules)))
    with progress(each * len(s.ranks) * s.repeat) as begin:
        for ranks in s.ranks:
            attempt, chosen = Attempts(begin), list(methods(ranks, s.redundancy, s.rules))
            samples: dict[DetoxMethod, list[tuple[float, ...]]] = {m: [] for m in chosen}
            for _ in range(s.repeat):
                for method in chosen:
                    what = f"{method.label}, {ranks} ranks"
                    step = _collective if method.collective else _in_one_place
                    if taken := attempt(method, what, step, method, ranks, s.size, s.steps):
                        samples[method].append(taken)
            record.rows += beside([_row(m, ranks, samples[m], attempt.errors) for m in chosen])
    record.growth = growth(record.rows)


def _row(
    method: DetoxMethod, ranks: int, samples: list[tuple[float, ...]], errors: dict[Any, str]
) -> DetoxRow:
    if method in errors:
        return DetoxRow(method, ranks, error=errors[method])
    work, wall, computing, sent = zip(*samples, strict=True)
    # Computing is by the clock: other processes only make it more.
    least, median = min(computing), Timing.of(sent).median
    return DetoxRow(method, ranks, Timing.of(work), Timing.of(wall), least, median)


def beside(rows: Sequence[DetoxRow]) -> list[DetoxRow]:
    """The rows of one number of ranks, those in groups compared with those without."""
    plain = {
        row.method.rule: row.work.median
        for row in rows
        if row.work and row.method.collective and not row.method.groups
    }
    return [
        replace(row, of_plain=row.work.median / plain[row.method.rule])
        if row.work and row.method.groups and row.method.rule in plain
        else row
        for row in rows
    ]


def growth(rows: Sequence[DetoxRow]) -> list[Growth]:
    """Of each method that was measured among two numbers of ranks or more."""

    def exponent(ranks: list[int], seconds: Sequence[float]) -> float:
        return float(np.polyfit(np.log(ranks), np.log(seconds), 1)[0])

    found = []
    for label in dict.fromkeys(row.label for row in rows):
        mine = [row for row in rows if row.label == label and row.work]
        ranks = [row.ranks for row in mine]
        if len(set(ranks)) < 2:
            continue
        parts = [row.computing for row in mine if row.computing]
        computing = exponent(ranks, parts) if len(parts) == len(mine) else None
        work = exponent(ranks, [row.work.median for row in mine if row.work])
        found.append(Growth(label, work, computing))
    return found


def _network(size: int) -> torch.nn.Module:
    """A perceptron of about ``size`` parameters, the same at every call."""
    hidden = max(1, round((size - _CLASSES) / (_INPUTS + 1 + _CLASSES)))
    return model.seeded(0, lambda: model.perceptron(_INPUTS, [hidden]))


def parameters(size: int) -> int:
    """Coordinates of the model of about ``size`` parameters."""
    return sum(p.numel() for p in _network(size).parameters())


def _collective(method: DetoxMethod, ranks: int, size: int, steps: int) -> tuple[float, ...]:
    """Of a step: processor time, clock and computing in seconds, bytes that a rank sends."""
    # Whose gradient each rank has: its own, or its group's.
    groups = assign(ranks, method.redundancy) if method.groups else [[r] for r in range(ranks)]
    batch = {rank: number for number, members in enumerate(groups) for rank in members}
    barrier = threading.Barrier(ranks, timeout=600)

    def together() -> None:
        # Ranks share the counters: they are read while no rank is in a step.
        with TURN.left():
            barrier.wait()

    def work(comm: Any) -> tuple[float, ...]:
        net = _network(size)
        optimizer = mpisign.DistributedOptimizer(
            torch.optim.SGD(net.parameters(), lr=1e-3),
            net.named_parameters(),
            comm=comm,
            compression=method.compressor,
            seed=1,
        )
        generator = torch.Generator().manual_seed(batch[comm.rank])
        gradients = [torch.randn(p.shape, generator=generator) for p in net.parameters()]

        def step() -> None:
            for p, g in zip(net.parameters(), gradients, strict=True):
                p.grad = g.clone()
            optimizer.step()

        return _per_step(step, steps, together)

    cpu, wall, computing, sent = simulation.run(ranks, work)[0]
    return cpu, wall, computing, sent / ranks


def _in_one_place(method: DetoxMethod, ranks: int, size: int, steps: int) -> tuple[float, ...]:
    """The rule on all rows at once, as a parameter server has them: nothing is sent."""
    make = byzfl.installed_rule if method.kind == "byzfl" else by_name
    rule = make(method.rule, method.f)
    rows = torch.randn(ranks, parameters(size), generator=torch.Generator().manual_seed(0))
    cpu, wall, _, _ = _per_step(lambda: rule(rows), steps)
    return cpu, wall, cpu, 0.0


def _per_step(step: Any, steps: int, together: Any = lambda: None) -> tuple[float, ...]:
    """``steps`` of them after one that does not count. ``together``: a barrier of the ranks."""
    step()
    together()
    before = _now()
    together()
    for _ in range(steps):
        step()
    together()
    return tuple((b - a) / steps for a, b in zip(before, _now(), strict=True))


def _now() -> tuple[float, float, float, float]:
    """Processor time, the clock, seconds of stages other than messages, bytes sent."""
    stages = mpisign.stats().stages
    computing = sum(s.seconds for name, s in stages.items() if name != "exchange")
    return time.process_time(), time.perf_counter(), computing, float(stages["exchange"].sent)
