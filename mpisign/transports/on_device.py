"""Picks the transport for device memory between ranks that a host transport connects."""

from __future__ import annotations

import hashlib
import os
import platform

import numpy as np

from mpisign.errors import WireError
from mpisign.transports import nccl_start
from mpisign.transports.base import Transport
from mpisign.transports.nccl import NCCLTransport
from mpisign.transports.staged import StagedTransport

VARIABLE = "MPISIGN_DEVICE_WIRE"
_WIRES = ("auto", "nccl", "mpi", "staged")


def over(control: Transport, *, timeout: float = 600.0) -> tuple[Transport, str]:
    """(a transport for CUDA arrays, why this one), the same on all ranks. Collective.

    ``control``: for host memory; the new transport owns it from now on. ``MPISIGN_DEVICE_WIRE``:
    nccl, mpi, staged, or auto, the default: NCCL if every rank has it and a device of its own, else
    MPI if ``control`` is MPI and CUDA-aware on all ranks, else staging. ValueError on all ranks if
    a rank's variable is invalid or differs from rank 0's, WireError after ``timeout`` seconds.
    """
    wanted = os.environ.get(VARIABLE, "auto").strip().lower()
    device, lack = _device_with_nccl() if wanted == "auto" else (b"", "")
    mine = np.zeros(34, dtype=np.uint8)
    mine[0] = _WIRES.index(wanted) if wanted in _WIRES else 255
    mine[1] = not lack
    mine[2 : 2 + len(device)] = np.frombuffer(device, dtype=np.uint8)
    rows = np.empty((control.size, 34), dtype=np.uint8)
    pending = control.start_allgather(mine, list(rows), 0)
    if not pending.wait(timeout):
        raise WireError(f"{VARIABLE}: ranks {pending.missing()} did not say in {timeout:g} s")
    for rank, choice in enumerate(rows[:, 0].tolist()):
        if choice == 255 or choice != rows[0, 0]:
            raise ValueError(f"rank {rank}: {VARIABLE} must be {', '.join(_WIRES)}, as on rank 0")
    if wanted == "nccl":
        return NCCLTransport(control, timeout=timeout), f"{VARIABLE}=nccl"
    if wanted == "staged":
        return StagedTransport(control), f"{VARIABLE}=staged"
    if wanted == "auto":
        without = np.flatnonzero(rows[:, 1] == 0)
        shared = len({row.tobytes() for row in rows[:, 2:]}) < control.size
        if not without.size and not shared:
            return NCCLTransport(control, timeout=timeout), "every rank has NCCL and its own GPU"
        no_nccl = f"rank {without[0]} has no NCCL" if without.size else "ranks share a GPU"
    else:
        no_nccl = f"{VARIABLE}=mpi"
    if control.name != "mpi":
        return StagedTransport(control), f"{no_nccl}, and {control.name} takes host memory only"
    from mpisign.transports import cuda_mpi
    from mpisign.transports.mpi import MPITransport

    assert isinstance(control, MPITransport)
    answer = cuda_mpi.together(control, seconds=timeout)
    if answer.aware:
        return cuda_mpi.CudaMPITransport(control.comm.Dup()), f"{no_nccl}; {answer.why}"
    return StagedTransport(control), f"{no_nccl}; MPI is not CUDA-aware: {answer.why}"


def _device_with_nccl() -> tuple[bytes, str]:
    """(a digest of the current device's node and bus id, what NCCL lacks here)."""
    try:
        nccl_start.load()
        import cupy

        place = cupy.cuda.runtime.deviceGetPCIBusId(cupy.cuda.runtime.getDevice())
    except Exception as error:  # no CuPy, libnccl, driver or device
        return b"", str(error)
    return hashlib.blake2b(f"{platform.node()} {place}".encode(), digest_size=32).digest(), ""
