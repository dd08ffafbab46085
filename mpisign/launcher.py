"""Ranks and sizes from the launcher's environment variables, before MPI or a device starts."""

from __future__ import annotations

import os
import sys

from mpisign.errors import LauncherError

# Inner launchers come before the batch systems that they run in: under mpirun inside Slurm,
# SLURM_LOCALID belongs to the batch script or to mpirun's daemons.
_LOCAL_RANK = (
    "HOROVOD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID",
    "MV2_COMM_WORLD_LOCAL_RANK", "MVP_COMM_WORLD_LOCAL_RANK", "PALS_LOCAL_RANKID",
    "PMI_LOCAL_RANK", "JSM_NAMESPACE_LOCAL_RANK", "FLUX_TASK_LOCAL_ID", "SLURM_LOCALID",
)  # fmt: skip
_RANK = (
    "HOROVOD_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK", "MVP_COMM_WORLD_RANK",
    "PMIX_RANK", "PMI_RANK", "JSM_NAMESPACE_RANK", "FLUX_TASK_RANK", "SLURM_PROCID",
)  # fmt: skip
_NOT_MPI = ("HOROVOD_RANK", "RANK", "FLUX_TASK_RANK", "SLURM_PROCID")  # alone: see ``starts_mpi``
# Not SLURM_NTASKS: the shell of a batch script has it too, and is one process.
_SIZE = (
    "HOROVOD_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "MVP_COMM_WORLD_SIZE",
    "PMI_SIZE", "JSM_NAMESPACE_SIZE", "FLUX_JOB_SIZE", "SLURM_STEP_NUM_TASKS",
)  # fmt: skip
_LOCAL_SIZE = (
    "HOROVOD_LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS",
    "MV2_COMM_WORLD_LOCAL_SIZE", "MVP_COMM_WORLD_LOCAL_SIZE", "PALS_LOCAL_SIZE",
    "PMI_LOCAL_SIZE", "JSM_NAMESPACE_LOCAL_SIZE",
)  # fmt: skip
_NODES = ("SLURM_STEP_NUM_NODES", "FLUX_JOB_NNODES")
_TORCHRUN = {
    _LOCAL_RANK: ("LOCAL_RANK",),
    _RANK: ("RANK",),
    _SIZE: ("WORLD_SIZE",),
    _LOCAL_SIZE: ("LOCAL_WORLD_SIZE",),
    _NODES: ("GROUP_WORLD_SIZE",),
}


def _first(names: tuple[str, ...]) -> tuple[str, int] | None:
    """The first of the variables that holds a number, and the number."""
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun: its names are too general alone
        names = (*_TORCHRUN[names], *names)
    for name in names:
        value = os.environ.get(name, "").strip()
        if value.isdecimal():
            return name, int(value)
    return None


def local_rank() -> int | None:
    """This process's number among those on its node, from 0; None if no launcher says."""
    return (_first(_LOCAL_RANK) or (None, None))[1]


def rank() -> int | None:
    """This process's number among all that the launcher started; None if no launcher says."""
    return (_first(_RANK) or (None, None))[1]


def variable() -> str | None:
    """The variable that says this process's rank, such as OMPI_COMM_WORLD_RANK; None without one.

    It tells launchers apart.
    """
    return (_first(_RANK) or (None, None))[0]


def is_first() -> bool:
    """Whether this process speaks for all: rank 0, or where no launcher and no group says.

    For warnings of what is the same on all ranks, which a job needs once.
    """
    dist = sys.modules.get("torch.distributed")
    if dist is not None and dist.is_available() and dist.is_initialized():
        return bool(dist.get_rank() == 0)
    return not rank()


def starts_mpi() -> bool:
    """Whether the launcher is one of MPI's, or a batch system that gives MPI what it needs."""
    found = _first(_RANK)
    return found is not None and found[0] not in _NOT_MPI


def launched_size() -> int | None:
    """How many processes the launcher started; None if no launcher says."""
    return (_first(_SIZE) or (None, None))[1]


def local_size() -> int | None:
    """How many of them run on this node; None if the launcher does not say."""
    found = _first(_LOCAL_SIZE)
    if found:
        return found[1]
    size, nodes = launched_size(), _first(_NODES)
    return size if size is not None and nodes is not None and nodes[1] == 1 else None


def check_world(size: int) -> None:
    """Raises LauncherError if ``size`` is 1 although the launcher started more processes.

    A launcher that does not fit the MPI library starts N jobs of one rank each, and each would
    train alone without a warning.
    """
    found = _first(_SIZE)
    if size != 1 or found is None or found[1] <= 1:
        return
    variable, launched = found
    if variable == "HOROVOD_SIZE":
        advice = (
            "horovodrun --gloo starts no MPI world: use mpisign.horovod there, "
            "or start with horovodrun --mpi or mpirun"
        )
    elif variable == "WORLD_SIZE":
        advice = 'torchrun starts no MPI world: use comm="torch" there, or start with mpirun'
    else:
        advice = (
            "the launcher and mpi4py's MPI library are not of one kind: start with the mpirun of "
            "the MPI that mpi4py loads (python -m mpi4py --mpi-lib-version tells which), "
            "under Slurm also srun --mpi=pmix, for MPICH --mpi=pmi2 (srun --mpi=list tells what "
            f"there is). One process on purpose: unset {variable}"
        )
    raise LauncherError(f"{variable} says {launched} processes, but MPI sees only one: {advice}")
