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
_WIRES = ("auto", "nccl", "mpi", "staged", "torch")
#: What a rank has for device memory.
_NOTHING, _CUPY_NCCL, _TORCH_NCCL = range(3)


def over(control: Transport, *, timeout: float = 600.0) -> tuple[Transport, str]:
    """(a transport for CUDA arrays, why this one), the same on all ranks. Collective.

    ``control``: for host memory; the new transport owns it from now on. ``MPISIGN_DEVICE_WIRE``:
    nccl, mpi, staged, torch, or auto, the default: NCCL if every rank has it and a device of its
    own (torch's in a group of ours if ``control`` is torch, else CuPy's), else MPI if ``control``
    is MPI and CUDA-aware on all ranks, else staging. ValueError on all ranks if a rank's variable
    is invalid or differs from rank 0's, or is torch without it, WireError after ``timeout``
    seconds.
    """
    wanted = os.environ.get(VARIABLE, "auto").strip().lower()
    torch_nccl = bool(getattr(control, "connects_devices", False))
    device, has = b"", _TORCH_NCCL if torch_nccl else _NOTHING
    if wanted == "auto":
        device, has = _device_with_nccl(torch_nccl)
    mine = np.zeros(34, dtype=np.uint8)
    mine[0] = _WIRES.index(wanted) if wanted in _WIRES else 255
    mine[1] = has
    mine[2 : 2 + len(device)] = np.frombuffer(device, dtype=np.uint8)
    rows = np.empty((control.size, 34), dtype=np.uint8)
    pending = control.start_allgather(mine, list(rows), 0)
    if not pending.wait(timeout):
        raise WireError(f"{VARIABLE}: ranks {pending.missing()} did not say in {timeout:g} s")
    for rank, choice in enumerate(rows[:, 0].tolist()):
        if choice == 255 or choice != rows[0, 0]:
            raise ValueError(f"rank {rank}: {VARIABLE} must be {', '.join(_WIRES)}, as on rank 0")
    if wanted == "torch":
        for rank in np.flatnonzero(rows[:, 1] != _TORCH_NCCL).tolist():
            raise ValueError(f"rank {rank}: {VARIABLE}=torch needs torch's NCCL and a torch group")
        return _torch_wire(control, timeout), f"{VARIABLE}=torch"
    if wanted == "nccl":
        return NCCLTransport(control, timeout=timeout), f"{VARIABLE}=nccl"
    if wanted == "staged":
        return StagedTransport(control), f"{VARIABLE}=staged"
    if wanted == "auto":
        without = np.flatnonzero(rows[:, 1] == 0)
        shared = len({row.tobytes() for row in rows[:, 2:]}) < control.size
        kinds = set(rows[:, 1].tolist())
        if not shared and kinds == {_TORCH_NCCL}:
            return _torch_wire(control, timeout), "every rank has torch's NCCL and its own GPU"
        if not shared and kinds == {_CUPY_NCCL}:
            return NCCLTransport(control, timeout=timeout), "every rank has NCCL and its own GPU"
        if without.size:
            no_nccl = f"rank {without[0]} has no NCCL"
        else:
            no_nccl = "ranks share a GPU" if shared else "ranks have NCCL of different kinds"
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


def _torch_wire(control: Transport, timeout: float) -> Transport:
    made: Transport = control.between_devices(timeout)  # type: ignore[attr-defined]
    return made


def _device_with_nccl(torch_nccl: bool) -> tuple[bytes, int]:
    """(a digest of the current device's node and bus id, which NCCL there is for it)."""
    try:
        if not torch_nccl:
            nccl_start.load()
        import cupy

        place = cupy.cuda.runtime.deviceGetPCIBusId(cupy.cuda.runtime.getDevice())
    except Exception:  # no CuPy, libnccl, driver or device
        return b"", _NOTHING
    digest = hashlib.blake2b(f"{platform.node()} {place}".encode(), digest_size=32).digest()
    return digest, _TORCH_NCCL if torch_nccl else _CUPY_NCCL
