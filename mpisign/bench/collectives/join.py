"""Starts the libraries that connect the ranks."""

from __future__ import annotations

import importlib

from mpisign.bench.collectives.via import Via
from mpisign.bench.errors import BenchError
from mpisign.bench.settings import ALL_VIAS, VIAS
from mpisign.errors import LauncherError

_NEEDED = {"torch": "torch.distributed", "horovod": "horovod.torch"}


def start(name: str, control: Via | None, seconds: float) -> Via:
    """One library. ``control``: what connects the ranks already, if anything; ``seconds``: timeout.

    Raises BenchError, LauncherError or ImportError if it does not run here.
    """
    if name == "mpi":
        if control is not None:
            raise BenchError(f"not an MPI job: it was started for {control.library}")
        from mpisign.bench.peers.mpi import MPIVia

        return MPIVia()
    if name == "torch":
        from mpisign.bench.peers.torch import TorchVia

        return TorchVia(control, seconds)
    if control is not None and control.name == "torch":
        raise BenchError("Horovod joins no job of torchrun: start with mpirun or horovodrun")
    from mpisign.bench.peers.horovod import HorovodVia

    return HorovodVia(control)


def imported(name: str, control: Via) -> None:
    """Imports a library on all ranks; BenchError if one of them does not have it. Collective."""
    if name in _NEEDED:
        control.agreed(lambda: importlib.import_module(_NEEDED[name]))


def join(wanted: tuple[str, ...], vias: list[Via], seconds: float) -> list[str]:
    """Adds to ``vias``, whose first connects the ranks, the other ``wanted`` libraries.

    Returns notes on those that do not run, if all that run are wanted; else raises BenchError.
    """
    control, notes = vias[0], []
    for name in VIAS:
        if name == control.name or (wanted != (ALL_VIAS,) and name not in wanted):
            continue
        try:
            imported(name, control)
            vias.append(start(name, control, seconds))
        except (BenchError, LauncherError) as error:
            if wanted != (ALL_VIAS,):
                raise BenchError(f"--via {name}: {error}") from error
            notes.append(f"{name} left out: {error}.")
    return notes
