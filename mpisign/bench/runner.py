"""A bench between the ranks of a job: its libraries started, errors reported once, hangs ended."""

from __future__ import annotations

import importlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mpisign.bench.collectives.via import Via, one_line
from mpisign.bench.record import Record
from mpisign.bench.report import Shown, check, report
from mpisign.bench.settings import ALL_VIAS, VIAS, Job
from mpisign.errors import LauncherError
from mpisign.experiments.errors import SettingsError, missing

_NEEDED = {"torch": "torch.distributed", "horovod": "horovod.torch"}
_HEAD_START = 1.0  # seconds that rank 0 has for its message before a launcher ends all ranks


def run(
    settings: Job, record: Record, shown: Shown, timeout: float, work: Callable[[list[Via]], None]
) -> int:
    """Runs ``work(opened)``, which may open more, and reports; the exit status. Collective."""
    opened: list[Via] = []
    try:
        control = start(settings.started, None, timeout)
        opened.append(control)
        control.agreed(lambda: _check(settings, control, record, shown))
        work(opened)
        # All wait for it: a rank that leaves may take the others with it.
        control.agreed(lambda: None if control.rank else report(record, shown))
        return 0
    except (SettingsError, LauncherError, ImportError) as error:
        known: Exception = error
        if isinstance(error, ModuleNotFoundError):
            known = missing(error.name or "a package", error)
        last_words(settings.rank, f"{_named(settings)}: error: {one_line(known)}")
        return 2
    finally:
        for via in reversed(opened):
            via.stop()


def _named(settings: Job) -> str:
    return f"{settings.COMMAND} {settings.NAME}"


def _check(settings: Job, control: Via, record: Record, shown: Shown) -> None:
    if control.size < 2:
        raise SettingsError(f"needs two ranks or more: mpirun -n 4 {_named(settings)}")
    if control.rank == 0:
        check(record, shown)


def start(name: str, control: Via | None, seconds: float) -> Via:
    """One library. ``control``: what connects the ranks already, if anything."""
    if name == "mpi":
        if control is not None:
            raise SettingsError(f"not an MPI job: it was started for {control.library}")
        from mpisign.bench.peers.mpi import MPIVia

        return MPIVia()
    if name == "torch":
        from mpisign.bench.peers.torch import TorchVia

        return TorchVia(control, seconds)
    if control is not None and control.name == "torch":
        raise SettingsError("Horovod joins no job of torchrun: start with mpirun or horovodrun")
    from mpisign.bench.peers.horovod import HorovodVia

    return HorovodVia(control)


def imported(name: str, control: Via) -> None:
    """Imports a library on all ranks; SettingsError if one of them does not have it. Collective."""
    if name in _NEEDED:
        control.agreed(lambda: importlib.import_module(_NEEDED[name]))


def join(wanted: tuple[str, ...], vias: list[Via], seconds: float) -> list[str]:
    """Adds to ``vias``, whose first connects the ranks, the other ``wanted`` libraries."""
    control, notes = vias[0], []
    for name in VIAS:
        if name == control.name or (wanted != (ALL_VIAS,) and name not in wanted):
            continue
        try:
            imported(name, control)
            vias.append(start(name, control, seconds))
        except (SettingsError, LauncherError) as error:
            if wanted != (ALL_VIAS,):
                raise SettingsError(f"--via {name}: {error}") from error
            notes.append(f"{name} left out: {error}.")
    return notes


def last_words(rank: int, text: str) -> None:
    """Rank 0 prints ``text`` on standard error; the others wait for it."""
    if rank == 0:
        print(text, file=sys.stderr, flush=True)
    else:
        time.sleep(_HEAD_START)


class Watchdog:
    """A thread that calls ``give_up(what)`` when something takes over ``seconds``, and exits."""

    def __init__(self, seconds: float, give_up: Callable[[str], object]) -> None:
        self.seconds = seconds
        self._give_up = give_up
        self._what, self._until = "", float("inf")
        threading.Thread(target=self._watch, name="mpisign-watchdog", daemon=True).start()

    @contextmanager
    def over(self, what: str) -> Iterator[None]:
        """``what`` is watched while the block runs."""
        self._what, self._until = what, time.monotonic() + self.seconds
        try:
            yield
        finally:
            self._until = float("inf")

    def _watch(self) -> None:
        pause = min(0.5, self.seconds / 4)
        while time.monotonic() < self._until:
            time.sleep(pause)
        self._give_up(self._what)


def watchdog(control: Via, seconds: float, text: Callable[[str], str]) -> Watchdog:
    """Ends the process with status 1 after the last words of rank 0, ``text(what)``."""

    def give_up(what: str) -> None:
        last_words(control.rank, text(what) if control.rank == 0 else "")
        os._exit(1)

    return Watchdog(seconds, give_up)
