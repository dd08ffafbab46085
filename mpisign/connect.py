"""What ``comm=`` stands for: the transport between the ranks that a caller or a launcher named."""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from typing import Any

from mpisign import forks, launcher
from mpisign.errors import TORCH
from mpisign.transports.base import Transport

_TORCH = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}  # all that torch needs
_KINDS = ("mpi", "horovod", "torch")


def connect(function: str, x: Any, seconds: float) -> tuple[Transport, str]:
    """A transport between the ranks of ``x``, and why it is this one. Collective.

    ``seconds``: how long its start may take.
    """
    if isinstance(x, Transport):
        return x, "it was given"
    kind, x, why = resolve(function, x, seconds)
    forks.check(function, kind)
    if kind == "mpi":
        from mpisign.transports import mpi

        return mpi.MPITransport(mpi.duplicate(mpi.checked(x), seconds)), why
    if kind == "torch":
        from mpisign.transports.torch import TorchTransport

        return TorchTransport(x, seconds), why
    if kind == "horovod":
        from mpisign.transports import horovod

        return horovod.made(x, seconds), why
    from mpisign.transports.threads import ThreadTransport, World

    return ThreadTransport(World(1), 0), why


def resolve(function: str, x: Any, seconds: float | None = None) -> tuple[str, Any, str]:
    """The kind of transport, what it is made of, and why.

    Raises TypeError, ValueError for an ``x`` that is no communicator.
    """
    module = type(x).__module__
    if x is None:
        return _launched(seconds)
    if isinstance(x, str):
        if x not in _KINDS:
            raise ValueError(f"{function}: comm must be {', '.join(map(repr, _KINDS))}, got {x!r}")
        return x, _world(x, seconds), "it was asked for"
    if module.startswith("mpi4py"):
        from mpisign.transports import mpi

        return "mpi", mpi.intracommunicator(function, x), "it was given an mpi4py communicator"
    if module.startswith("horovod"):
        return "horovod", x, "it was given a Horovod process set"
    if module.startswith("torch") and hasattr(x, "allreduce") and hasattr(x, "rank"):
        return "torch", x, "it was given a torch process group"
    raise TypeError(
        f"{function}: comm must be an mpi4py intracommunicator, a torch process group, a Horovod "
        f"process set, a Communicator or None, got {type(x).__name__}"
    )


def _world(kind: str, seconds: float | None) -> Any:
    if kind == "mpi":
        from mpisign.transports import mpi

        mpi.check_runs("Communicator")
        return mpi.MPI.COMM_WORLD
    if kind == "torch":
        try:
            import torch.distributed as dist
        except ImportError as error:
            raise ImportError(f"votes over torch.distributed need torch: {TORCH}") from error
        if not dist.is_initialized():
            limit = None if seconds is None else timedelta(seconds=seconds)
            dist.init_process_group(timeout=limit)
        return dist.group.WORLD
    from mpisign.transports.horovod import hvd  # whose import error says what to install

    if not hvd.is_initialized():
        hvd.init()
    return None


def _launched(seconds: float | None) -> tuple[str, Any, str]:
    """What the launcher started: by what runs already, then by what it left in the environment."""
    if _torch_size() > 1:
        return "torch", _world("torch", seconds), "torch.distributed is initialised"
    if _mpi_size() > 1:
        return "mpi", _world("mpi", seconds), "MPI runs with more than one rank"
    env = os.environ
    if env.get("HOROVOD_CONTROLLER") == "gloo" or (
        "HOROVOD_RANK" in env and "OMPI_COMM_WORLD_RANK" not in env
    ):
        return "horovod", _world("horovod", seconds), "horovodrun --gloo started this process"
    if "TORCHELASTIC_RUN_ID" in env:
        return "torch", _world("torch", seconds), "torchrun started this process"
    size = launcher.launched_size()
    for_torch = env.get("WORLD_SIZE", "1") != "1" and _TORCH <= env.keys()
    # Under srun alone MPI would end the process when it starts.
    if for_torch and not launcher.starts_mpi():
        return "torch", _world("torch", seconds), "RANK and WORLD_SIZE are set"
    try:
        import mpi4py  # noqa: F401
    except ImportError:
        if size is None or size == 1:
            return "alone", None, "no launcher started this process and mpi4py is not installed"
    if size is None and _torch_size():
        return "torch", _world("torch", seconds), "torch.distributed is initialised"
    world = _world("mpi", seconds)
    if for_torch and world.Get_size() == 1:
        return (
            "torch",
            _world("torch", seconds),
            "RANK and WORLD_SIZE are set, and MPI has one rank",
        )
    why = "mpi4py is installed" if size is None else f"a launcher started {size} processes"
    return "mpi", world, why


def _torch_size() -> int:
    """The ranks of torch.distributed's default group, 0 if it is not initialised."""
    dist = sys.modules.get("torch.distributed")
    if dist is None or not dist.is_available() or not dist.is_initialized():
        return 0
    return dist.get_world_size()  # type: ignore[no-any-return]


def _mpi_size() -> int:
    """The ranks of MPI's world, 0 if this process has not started MPI."""
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is None or not mpi.Is_initialized() or mpi.Is_finalized():
        return 0
    return mpi.COMM_WORLD.Get_size()  # type: ignore[no-any-return]
