"""Starts the wires that a run is to be measured over."""

from __future__ import annotations

from functools import partial

from mpisign.bench.errors import BenchError
from mpisign.bench.wire.via import Via

ALL = "all-that-run"
VIAS = ("mpi", "torch", "horovod")


def start(name: str, control: Via | None, seconds: float) -> Via:
    """One wire. ``control``: what connects the ranks already, if anything; ``seconds``: timeout.

    Raises BenchError, LauncherError or ImportError if it does not run here.
    """
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


def join(wanted: tuple[str, ...], vias: list[Via], seconds: float) -> list[str]:
    """Adds to ``vias``, whose first connects the ranks, what else is ``wanted``.

    Returns notes on what does not run, if all that run are wanted; else that is a BenchError.
    """
    control, notes = vias[0], []
    for name in VIAS:
        if name == control.name or (wanted != (ALL,) and name not in wanted):
            continue
        try:
            control.agreed(partial(_import, name))
            vias.append(start(name, control, seconds))
        except BenchError as error:
            if wanted != (ALL,):
                raise BenchError(f"--via {name}: {error}") from error
            notes.append(f"{name} left out: {error}.")
    return notes


def _import(name: str) -> None:
    if name == "torch":
        import torch.distributed  # noqa: F401
    elif name == "horovod":
        import horovod.torch  # noqa: F401
