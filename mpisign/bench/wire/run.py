"""``mpisign bench collectives`` from its settings to its tables, JSON and plot."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from mpisign.bench.errors import BenchError
from mpisign.bench.progress import Progress
from mpisign.bench.table import coordinates
from mpisign.bench.wire import links, measure, nodes, packbits, report, results
from mpisign.bench.wire.goals import goals
from mpisign.bench.wire.gradient import Gradient, cut
from mpisign.bench.wire.join import ALL, join, start
from mpisign.bench.wire.ours import Votes
from mpisign.bench.wire.record import Record
from mpisign.bench.wire.via import Via, said
from mpisign.bench.wire.watchdog import Watchdog
from mpisign.bench.wire.way import Way
from mpisign.communicator import Communicator
from mpisign.errors import LauncherError

_HANGS = 10.0  # time limits, after which something hangs
_HANGS_FROM = 60.0  # seconds
_HEAD_START = 1.0  # seconds that rank 0 has for its message before a launcher ends all ranks


@dataclass(frozen=True)
class Settings:
    """What to measure, over what, and where the results go.

    ``started``: the wire that the launcher started this process for; ``rank``: as it says.
    """

    via: tuple[str, ...]
    sizes: tuple[int, ...]
    algorithms: tuple[str, ...]
    tensors: int | str
    only: tuple[str, ...]
    repeat: int
    time_limit: float
    cost: Path | None
    json: Path | None
    plot: Path | None
    markdown: Path | None
    started: str
    rank: int

    @property
    def hangs(self) -> float:
        """Seconds after which nothing is waited for."""
        return max(_HANGS_FROM, _HANGS * self.time_limit)


def run(settings: Settings, command: str) -> int:
    """Measures and reports; 0, or 2 for what a person can put right. Every rank calls it."""
    if settings.cost is not None:
        os.environ.pop("MPISIGN_COSTS", None)  # else communicators would measure nothing
    vias: list[Via] = []
    try:
        control = start(settings.started, None, settings.hangs)
        vias.append(control)
        control.agreed(lambda: _check(settings, control))
        notes = join(settings.via, vias, settings.hangs)
        found = nodes.find(control)
        kept = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(settings).items()}
        record = Record(command, found, kept, notes=notes)
        wanted = [v for v in vias if settings.via == (ALL,) or v.name in settings.via]
        _measure(settings, control, wanted, record)
        record.goals = list(goals(record.rows, found))
        # All wait for it: a rank that leaves may take the others with it.
        control.agreed(lambda: None if control.rank else report.report(settings, record))
    except (BenchError, LauncherError, ImportError) as error:
        if settings.rank == 0:
            print(f"mpisign bench collectives: error: {said(error)}", file=sys.stderr, flush=True)
        else:
            time.sleep(_HEAD_START)
        return 2
    finally:
        for via in reversed(vias):
            via.stop()
    return 0


def _check(settings: Settings, control: Via) -> None:
    """What is unusable is said before anything is measured."""
    if control.size < 2:
        raise BenchError("needs two ranks or more: mpirun -n 4 mpisign bench collectives")
    if control.rank == 0:
        report.check(settings)


def _ways(via: Via, votes: Votes, settings: Settings) -> Iterator[Way]:
    """Every way over a wire, in the order of the table."""
    yield from votes.ways(settings.algorithms)
    if via.name == "mpi":
        from mpisign.bench.wire import peers_mpi

        yield from peers_mpi.ways(via)  # type: ignore[arg-type]
    elif via.name == "torch":
        from mpisign.bench.wire import peers_torch

        yield from peers_torch.ways(via)  # type: ignore[arg-type]
    else:
        from mpisign.bench.wire import peers_horovod

        yield from peers_horovod.ways()
    yield packbits.way(via)
    if via.name != "horovod":
        from mpisign.bench.wire import peer_deepspeed

        yield peer_deepspeed.way(via)


def _measure(settings: Settings, control: Via, vias: list[Via], record: Record) -> None:
    """Fills ``record``."""

    def give_up(what: str) -> None:
        if control.rank == 0:
            record.notes.append(f"Given up: {what} did not end within {settings.hangs:.0f} s.")
            report.report(settings, record)
            print(f"mpisign: gave up: {what} hangs", file=sys.stderr, flush=True)
        else:
            time.sleep(_HEAD_START)
        os._exit(1)

    watchdog = Watchdog(settings.hangs, give_up)
    clock = measure.Clock(control, record.nodes, watchdog, settings.time_limit)
    votes = [
        Votes(partial(Communicator, via.argument(), timeout=settings.hangs), record.nodes)
        for via in vias
    ]
    plan = [
        (via, way)
        for via, own in zip(vias, votes, strict=True)
        for way in _ways(via, own, settings)
        if not settings.only or way.kind in settings.only
    ]
    steps = len(settings.sizes) * (len(plan) + settings.repeat)
    with Progress(steps) if control.rank == 0 else Silent() as progress:
        with watchdog.over("plain messages"):
            probes = [links.Probe(via, record.nodes) for via in vias]
            clock.weigh()
            if settings.cost is not None:
                record.costs = control.agreed(votes[0].costs)
        for size in settings.sizes:
            gradient = Gradient(size, cut(size, settings.tensors), control.rank, control.size)
            contestants = [measure.Contestant(via, way) for via, way in plan]
            for contestant in contestants:
                progress.begin(f"{contestant.label}, {coordinates(size)} coordinates, first call")
                clock.rehearse(contestant, gradient)
                progress.end()
            gradient.forget()
            for turn in range(settings.repeat):
                progress.begin(f"{coordinates(size)} coordinates, turn {turn + 1} of each")
                for contestant in contestants:
                    clock.turn(contestant, size)
                with watchdog.over("plain messages"):
                    for probe in probes:
                        probe.turn()
                progress.end()
            for probe in probes:
                link = probe.link(size)
                record.links.append(link)
                mine = [c for c in contestants if c.via is probe.via]
                rows = [measure.row(c, gradient, record.nodes, link) for c in mine]
                record.rows += results.beside(rows)


class Silent(Progress):
    """For the other ranks."""

    def __init__(self) -> None:
        super().__init__(0)

    def begin(self, what: str) -> None:
        pass
