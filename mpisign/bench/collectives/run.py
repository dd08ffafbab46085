"""What ``mpisign bench collectives`` measures: all methods of one size, in turns."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mpisign.bench import runner
from mpisign.bench.collectives import nodes, shown
from mpisign.bench.collectives.clock import Clock, Contestant
from mpisign.bench.collectives.earlier import Earlier, read
from mpisign.bench.collectives.goals import goals
from mpisign.bench.collectives.method import CollectiveMethod, Gradient, cut
from mpisign.bench.collectives.nodes import Link, Nodes
from mpisign.bench.collectives.via import Via
from mpisign.bench.collectives.votes import Votes, packbits
from mpisign.bench.measure import Timing
from mpisign.bench.progress import progress
from mpisign.bench.record import Record
from mpisign.bench.report import report
from mpisign.bench.settings import ALL_VIAS, CollectivesSettings
from mpisign.bench.table import coordinates
from mpisign.communicator import Communicator

_FP32 = 4


@dataclass(frozen=True)
class CollectiveRow:
    """One method at one size, in seconds, bytes, bytes per second. ``error``: why there is no more.

    ``sent``, ``received``: of a call, mean over the ranks: counted by mpisign.stats for votes
    (``bytes_by`` "stats"), else what the method must move ("formula"). ``counted_sent``,
    ``counted_received``: at each node's interface, mean over the nodes, headers included.
    ``limit``: seconds that the wire needs for the method's bytes, None where one message's latency
    is longer; ``ratio``: time / limit. ``slowest``: the slowest call; ``times_of_bare``: time / the
    faster bare vote's.
    """

    size: int
    tensors: int
    via: str
    method: str
    kind: str
    algorithm: str | None
    time: Timing | None = None
    slowest: float | None = None
    calls_per_turn: int = 0
    algbw: float | None = None
    busbw: float | None = None
    sent: float | None = None
    received: float | None = None
    bytes_by: str | None = None
    counted_sent: float | None = None
    counted_received: float | None = None
    limit: float | None = None
    ratio: float | None = None
    times_of_bare: float | None = None
    times_faster_than_fp32: float | None = None
    times_faster_than_fp16: float | None = None
    error: str | None = None
    notes: str = ""


@dataclass(kw_only=True)
class JobRecord(Record):
    """A run between ranks."""

    DERIVED: ClassVar = ("ranks",)

    nodes: Nodes = field(default_factory=lambda: Nodes((0,)))

    @property
    def ranks(self) -> int:
        return len(self.nodes.of)

    @property
    def where(self) -> str:
        """Which ranks took part."""
        return f"Ranks: {self.nodes}."


@dataclass(kw_only=True)
class CollectivesRecord(JobRecord):
    """One run of ``mpisign bench collectives``."""

    links: list[Link] = field(default_factory=list)
    costs: Any = None  # mpisign's Costs, with --cost
    earlier: Earlier | None = None  # with --beside

    def library(self, via: str) -> str:
        """The library behind a name of ``--via``, with its version."""
        return next(link.library for link in self.links if link.via == via)


def run(settings: CollectivesSettings, command: str) -> int:
    """Measures and reports; 0, or 2 after an error that the user can correct. Collective."""
    if settings.cost is not None:
        os.environ.pop("MPISIGN_COSTS", None)  # else communicators would measure nothing
    record = CollectivesRecord(name=settings.NAME, command=command, settings=settings)

    def work(opened: list[Via]) -> None:
        control = opened[0]
        file = None if control.rank else settings.beside
        record.earlier = control.agreed(lambda: read(file) if file else None)
        record.notes += runner.join(settings.via, opened, settings.hangs)
        record.nodes = nodes.find(control)
        everything = settings.via == (ALL_VIAS,)
        _measure(control, [v for v in opened if everything or v.name in settings.via], record)
        record.goals = list(goals(record.rows, record.nodes, record.earlier))

    return runner.run(settings, record, SHOWN, settings.hangs, work)


def _save_costs(record: CollectivesRecord, path: Path) -> None:
    if record.costs is not None:
        record.costs.save(path)


SHOWN = replace(shown.SHOWN, files={"cost": _save_costs})


def _methods(via: Via, votes: Votes, settings: CollectivesSettings) -> Iterator[CollectiveMethod]:
    """Every method over a library, in the order of the table."""
    yield from votes.methods(settings.algorithms)
    yield from via.methods()
    yield packbits(via)
    if via.name != "horovod":
        from mpisign.bench.peers import deepspeed

        yield deepspeed.method(via)


def _measure(control: Via, vias: list[Via], record: CollectivesRecord) -> None:
    """Fills ``record``."""
    settings: CollectivesSettings = record.settings

    def give_up(what: str) -> str:
        record.notes.append(f"Given up: {what} did not end within {settings.hangs:.0f} s.")
        report(record, SHOWN)
        return f"mpisign: gave up: {what} hangs"

    watchdog = runner.watchdog(control, settings.hangs, give_up)
    clock = Clock(control, record.nodes, watchdog, settings.time_limit)
    votes = [
        Votes(partial(Communicator, via.argument(), timeout=settings.hangs), record.nodes)
        for via in vias
    ]
    plan = [
        (via, method)
        for via, own in zip(vias, votes, strict=True)
        for method in _methods(via, own, settings)
        if not settings.only or method.kind in settings.only
    ]
    steps = len(settings.sizes) * (len(plan) + settings.repeat)
    with progress(steps, shown=control.rank == 0) as begin:
        with watchdog.over("plain messages"):
            probes = [nodes.Probe(via, record.nodes) for via in vias]
            clock.calibrate()
            if settings.cost is not None:
                record.costs = control.agreed(votes[0].costs)
        for size in settings.sizes:
            gradient = Gradient(size, cut(size, settings.tensors), control.rank, control.size)
            contestants = [Contestant(via, method) for via, method in plan]
            for contestant in contestants:
                begin(f"{contestant.label}, {coordinates(size)} coordinates, first call")
                clock.warm_up(contestant, gradient)
            gradient.forget()
            for turn in range(settings.repeat):
                begin(f"{coordinates(size)} coordinates, turn {turn + 1} of each")
                for contestant in contestants:
                    clock.turn(contestant, size)
                with watchdog.over("plain messages"):
                    for probe in probes:
                        probe.turn()
            for contestant in contestants:
                clock.end(contestant)
            for probe in probes:
                link = probe.link(size)
                record.links.append(link)
                mine = [c for c in contestants if c.via is probe.via]
                record.rows += beside([_row(c, gradient, record.nodes, link) for c in mine])


def _row(contestant: Contestant, gradient: Gradient, nodes: Nodes, link: Link) -> CollectiveRow:
    method, via, tensors = contestant.method, contestant.via.name, len(gradient.lengths)
    known = CollectiveRow(
        gradient.length, tensors, via, method.label, method.kind, method.algorithm,
        notes=method.notes,
    )  # fmt: skip
    if contestant.error or not contestant.samples:
        return replace(known, error=contestant.error or "not measured")
    timing = Timing.of(contestant.samples)
    must = method.traffic(gradient.length, gradient.size, *nodes.ends)
    sent, received, out, into = (float(v) for v in np.median(contestant.bytes, axis=0))
    if not method.booked:
        sent = received = must.rank
    limit: float | None = must.link / (nodes.rate or link.bandwidth)
    if limit and limit < link.latency:  # bytes are not what takes the time
        limit = None
    return replace(
        known,
        time=timing,
        slowest=max(contestant.samples),
        calls_per_turn=contestant.calls,
        algbw=_FP32 * gradient.length / timing.median,
        busbw=received / timing.median,
        sent=sent,
        received=received,
        bytes_by="stats" if method.booked else "formula",
        counted_sent=out if nodes.interface else None,
        counted_received=into if nodes.interface else None,
        limit=limit,
        ratio=timing.median / limit if limit else None,
    )


def beside(rows: Sequence[CollectiveRow]) -> list[CollectiveRow]:
    """The rows of one size and library, each beside its allreduces and its faster bare vote."""
    base: dict[str, float] = {}
    for row in rows:
        if row.time:
            base[row.kind] = min(row.time.median, base.get(row.kind, row.time.median))

    def faster(kind: str, own: Timing | None) -> float | None:
        return base[kind] / own.median if own and kind in base else None

    return [
        replace(
            row,
            times_of_bare=row.time.median / base["bare"] if row.time and "bare" in base else None,
            times_faster_than_fp32=faster("fp32", row.time),
            times_faster_than_fp16=faster("fp16", row.time),
        )
        for row in rows
    ]
