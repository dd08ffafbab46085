"""Forked children: they hold copies of what connects their parent, and are no ranks.

A DataLoader's worker or a child of ``multiprocessing`` that used such a copy would send messages in
its parent's name.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from mpisign.errors import BrokenError

_NAMES = {"mpi": "MPI", "torch": "torch.distributed", "horovod": "Horovod"}
_inherited: dict[str, Any] = {}


def explanation(pid: int) -> str:
    """Why this process may not use what process ``pid`` made."""
    return (
        f"this process, {os.getpid()}, is a forked child of the rank that process {pid} is: it is "
        "no rank itself and must call no collective"
    )


def check(function: str, kind: str) -> None:
    """BrokenError if this process has ``kind`` from the process that it was forked from.

    ``kind``: "mpi", "torch", "horovod"; others pass. A child may start torch.distributed anew.
    """
    if kind not in _inherited or (kind == "torch" and _group() is not _inherited[kind]):
        return
    raise BrokenError(f"{function}: {explanation(os.getppid())} over {_NAMES[kind]}")


def _group() -> Any:
    """torch.distributed's group of all ranks, None if there is none."""
    dist = sys.modules.get("torch.distributed")
    runs = dist is not None and dist.is_available() and dist.is_initialized()
    return dist.group.WORLD if dist is not None and runs else None


def _note() -> None:
    """In a child that was just forked: what it inherited."""
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is not None and mpi.Is_initialized() and not mpi.Is_finalized():
        _inherited["mpi"] = True
    if _group() is not None:
        _inherited["torch"] = _group()
    horovod = sys.modules.get("horovod.torch")
    if horovod is not None and horovod.is_initialized():
        _inherited["horovod"] = True


os.register_at_fork(after_in_child=_note)
