"""``mpisign bench collectives`` from its settings to its tables, JSON and plot."""

from __future__ import annotations

import os
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from mpisign.bench import files
from mpisign.bench.errors import BenchError
from mpisign.bench.progress import Progress
from mpisign.bench.table import coordinates
from mpisign.bench.wire import links, measure, nodes, packbits, results, table
from mpisign.bench.wire.gradient import Gradient, cut
from mpisign.bench.wire.ours import Votes
from mpisign.bench.wire.record import Record
from mpisign.bench.wire.via import Via, said
from mpisign.bench.wire.watchdog import Watchdog
from mpisign.bench.wire.way import Way
from mpisign.communicator import Communicator
from mpisign.errors import LauncherError
from mpisign.training.progress import on_terminal

ALL = "all-that-run"
MARK = "<!-- mpisign bench collectives -->"
_VIAS = ("mpi", "torch", "horovod")
_HANGS = 10.0  # time limits, after which something hangs
_HANGS_FROM = 60.0  # seconds
_HEAD_START = 1.0  # seconds that rank 0 has for its message before a launcher ends all ranks


@dataclass(frozen=True)
class Settings:
    """What to measure, over what, and where the results go."""

    via: tuple[str, ...]
    sizes: tuple[int, ...]
    algorithms: tuple[str, ...]
    tensors: int | str
    only: tuple[str, ...]
    repeat: int
    time_limit: float
    json: Path | None
    plot: Path | None
    markdown: Path | None
    started: str


def run(settings: Settings, command: str) -> int:
    """Measures and reports; 0, or 2 for what a person can put right. Every rank calls it."""
    hangs = max(_HANGS_FROM, _HANGS * settings.time_limit)
    try:
        control = _start(settings.started, None, hangs)
    except (BenchError, LauncherError, ImportError) as error:
        return _refused(said(error), mpisign_rank())
    vias = [control]
    try:
        control.agreed(lambda: _check(settings, control))
        notes = _join(settings, vias, hangs)
        found = nodes.find(control)
        kept = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(settings).items()}
        record = Record(command, found, kept, notes=notes)
        _measure(settings, control, [v for v in vias if _wanted(settings, v)], record, hangs)
        # All wait for it: a rank that leaves may take the others with it.
        control.agreed(lambda: report(settings, record) if control.rank == 0 else None)
    except BenchError as error:
        return _refused(str(error), control.rank)
    finally:
        for via in reversed(vias):
            via.stop()
    return 0


def mpisign_rank() -> int:
    """This process's rank, before anything connects it."""
    from mpisign import launcher

    return launcher.rank() or int(os.environ.get("RANK", "0"))


def _start(name: str, control: Via | None, seconds: float) -> Via:
    """Raises BenchError, LauncherError or ImportError if it does not run here."""
    if name == "mpi":
        if control is not None:
            raise BenchError(f"not an MPI job: it was started for {control.library}")
        from mpisign.bench.wire.via_mpi import MPIVia

        return MPIVia()
    if name == "torch":
        from mpisign.bench.wire.via_torch import TorchVia

        return TorchVia(control, seconds)
    if control is not None and control.name == "torch":
        raise BenchError("Horovod joins no job of torchrun: start with mpirun or horovodrun")
    from mpisign.bench.wire.via_horovod import HorovodVia

    return HorovodVia(control)


def _wanted(settings: Settings, via: Via) -> bool:
    return settings.via == (ALL,) or via.name in settings.via


def _join(settings: Settings, vias: list[Via], hangs: float) -> list[str]:
    """Starts the other wires; notes on those that do not run. BenchError if one was asked for."""
    control, notes = vias[0], []
    for name in _VIAS:
        if name == control.name or (settings.via != (ALL,) and name not in settings.via):
            continue
        try:
            control.agreed(lambda name=name: _importable(name))  # type: ignore[misc]
            vias.append(_start(name, control, hangs))
        except BenchError as error:
            if settings.via != (ALL,):
                raise BenchError(f"--via {name}: {error}") from error
            notes.append(f"{name} left out: {error}.")
    return notes


def _importable(name: str) -> None:
    if name == "torch":
        import torch.distributed  # noqa: F401
    elif name == "horovod":
        import horovod.torch  # noqa: F401


def _check(settings: Settings, control: Via) -> None:
    """What is unusable is said before anything is measured."""
    if control.size < 2:
        raise BenchError("needs two ranks or more: mpirun -n 4 mpisign bench collectives")
    if control.rank:
        return
    for option in ("json", "plot", "markdown"):
        files.check_path(f"--{option}", getattr(settings, option))
    if settings.plot is not None:
        from mpisign.bench.plot import check

        check(settings.plot)
    if settings.markdown is not None:
        files.around(settings.markdown, MARK)


def _ways(via: Via, settings: Settings, found: nodes.Nodes, hangs: float) -> Iterator[Way]:
    """Every way over a wire, in the order of the table."""

    votes = Votes(lambda: Communicator(via.argument(), timeout=hangs), found)
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


def _measure(
    settings: Settings, control: Via, vias: list[Via], record: Record, hangs: float
) -> None:
    def give_up(what: str) -> None:
        if control.rank == 0:
            record.notes.append(f"Given up: {what} did not end within {hangs:.0f} s.")
            report(settings, record)
            print(f"mpisign: gave up: {what} hangs", file=sys.stderr, flush=True)
        else:
            time.sleep(_HEAD_START)
        os._exit(1)

    watchdog = Watchdog(hangs, give_up)
    clock = measure.Clock(control, record.nodes, watchdog, settings.time_limit)
    plan = [(via, way) for via in vias for way in _ways(via, settings, record.nodes, hangs)]
    plan = [(via, way) for via, way in plan if not settings.only or way.kind in settings.only]
    with _progress(control.rank == 0, len(settings.sizes) * (len(plan) + settings.repeat)) as told:
        with watchdog.over("plain messages"):
            probes = [links.Probe(via, record.nodes) for via in vias]
            clock.weigh()
        for size in settings.sizes:
            gradient = Gradient(size, cut(size, settings.tensors), control.rank, control.size)
            contestants = [measure.Contestant(via, way) for via, way in plan]
            for contestant in contestants:
                told.begin(f"{contestant.label}, {coordinates(size)} coordinates, first call")
                clock.rehearse(contestant, gradient)
                told.end()
            gradient.forget()
            for turn in range(settings.repeat):
                told.begin(f"{coordinates(size)} coordinates, turn {turn + 1} of each")
                for contestant in contestants:
                    clock.turn(contestant, size)
                with watchdog.over("plain messages"):
                    for probe in probes:
                        probe.turn()
                told.end()
            for probe in probes:
                link = probe.link(size)
                record.links.append(link)
                mine = [c for c in contestants if c.via is probe.via]
                rows = [measure.row(c, gradient, record.nodes, link) for c in mine]
                record.rows += results.beside(rows)


class _Silent(Progress):
    """For the other ranks."""

    def __init__(self) -> None:
        super().__init__(0)

    def begin(self, what: str) -> None:
        pass


def _progress(shown: bool, steps: int) -> Progress:
    return Progress(steps) if shown else _Silent()


def report(settings: Settings, record: Record) -> None:
    """Tables to standard output, then the files; BenchError if one cannot be written."""
    colour = on_terminal() and "NO_COLOR" not in os.environ
    for part in table.text(record, colour):
        print(f"{part}\n")
    for line in table.footnotes(record):
        print(textwrap.fill(line, table.WIDTH))
    sys.stdout.flush()
    tables = table.markdown(record)
    files.write_all(
        [
            ("--json", settings.json, record.write),
            ("--markdown", settings.markdown, lambda p: files.write_between_marks(p, MARK, tables)),
            ("--plot", settings.plot, _plotted(record)),
        ]
    )


def _plotted(record: Record) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        from mpisign.bench.wire import plot

        plot.write(path, record)

    return write


def _refused(message: str, rank: int) -> int:
    if rank == 0:
        print(f"mpisign bench collectives: error: {message}", file=sys.stderr, flush=True)
    else:
        time.sleep(_HEAD_START)
    return 2
