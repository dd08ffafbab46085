"""MPI on device memory, and whether this MPI supports it."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mpisign.backend import arrays
from mpisign.errors import WireError
from mpisign.transports.base import Part, Pending, Transport
from mpisign.transports.mpi import MPI, MPITransport

VARIABLE = "MPISIGN_CUDA_MPI"


class Answer(NamedTuple):
    """Whether MPI takes device memory, and why."""

    aware: bool
    why: str


# Ranks exchange the index, one byte.
_ANSWERS = (
    Answer(False, f"{VARIABLE}=0"),
    Answer(True, f"{VARIABLE}=1"),
    Answer(True, "mpi_memory_alloc_kinds has cuda"),
    Answer(True, "MPIX_GPU_query_support says yes"),
    Answer(True, "MPIX_Query_cuda_support says yes"),
    Answer(True, "MPICH_GPU_SUPPORT_ENABLED=1"),
    Answer(True, "MV2_USE_CUDA=1"),
    Answer(False, "this MPI library is built without CUDA"),
    Answer(False, "no CUDA device can be used"),
    Answer(False, f"{VARIABLE} must be auto, 1 or 0"),
)
_OFF, _ON, _KINDS, _MPICH, _OPEN_MPI, _CRAY, _MVAPICH, _NO, _NO_DEVICE, _BAD = range(len(_ANSWERS))


def here(device: int | None = None) -> Answer:
    """The answer of this rank. Tries ``device`` (default: the current one) if MPI says yes.

    ``MPISIGN_CUDA_MPI``: 1 or 0 decide, "auto" (the default) asks MPI; ValueError for others.
    """
    code = _here(device)
    if code == _BAD:
        raise ValueError(f"{_ANSWERS[code].why}, got {os.environ[VARIABLE]!r}")
    return _ANSWERS[code]


def together(
    control: Transport, device: int | None = None, *, seconds: float | None = None
) -> Answer:
    """The same answer on every rank of ``control``: yes if all say yes. Collective.

    ValueError on all ranks if the variable of one is wrong; WireError after ``seconds``.
    """
    mine = np.array([_here(device)], dtype=np.uint8)
    every = np.empty((control.size, 1), dtype=np.uint8)
    pending = control.start_allgather(mine, list(every), 0)
    if not pending.wait(seconds):
        raise WireError(f"is MPI CUDA-aware: ranks {pending.missing()} did not say in {seconds} s")
    for rank, code in enumerate(every[:, 0].tolist()):
        if code == _BAD:
            raise ValueError(f"rank {rank}: {_ANSWERS[code].why}")
        if not _ANSWERS[code].aware:
            return Answer(False, f"rank {rank}: {_ANSWERS[code].why}")
    return _ANSWERS[int(every[0, 0])]


def library_says() -> Answer:
    """The answer of MPI and its environment; tries no device."""
    return _ANSWERS[_library()]


def _here(device: int | None) -> int:
    chosen = os.environ.get(VARIABLE, "auto").strip().lower()
    if chosen != "auto":
        return {"1": _ON, "0": _OFF}.get(chosen, _BAD)
    answer = _library()
    # Open MPI built with CUDA says yes where the driver is missing.
    if _ANSWERS[answer].aware and not _works(device):
        return _NO_DEVICE
    return answer


def _library() -> int:
    # A list without cuda proves nothing: libraries list the kinds requested at the job's start.
    if _has_cuda(MPI.COMM_WORLD.Get_info().Get("mpi_memory_alloc_kinds") or ""):
        return _KINDS
    query = _symbol("MPIX_GPU_query_support")
    if query is not None:
        supported = ctypes.c_int(0)
        cuda = 0  # MPIX_GPU_SUPPORT_CUDA
        if query(ctypes.c_int(cuda), ctypes.byref(supported)) == 0 and supported.value:
            return _MPICH
    query = _symbol("MPIX_Query_cuda_support")
    if query is not None and query() == 1:
        return _OPEN_MPI
    for variable, answer in (("MPICH_GPU_SUPPORT_ENABLED", _CRAY), ("MV2_USE_CUDA", _MVAPICH)):
        if os.environ.get(variable, "").strip() == "1":
            return answer
    return _NO


def _has_cuda(kinds: str) -> bool:
    """Whether MPI 4.1's list, such as "system,cuda:device:managed", has device memory."""
    for kind in kinds.replace(" ", "").split(","):
        name, *restrictions = kind.split(":")
        if name == "cuda" and (not restrictions or "device" in restrictions):
            return True
    return False


def libraries() -> list[str]:
    """The MPI libraries that this process has loaded."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:  # not Linux
        return []
    found = re.findall(r"\s(/\S*/libmpi(?:ch)?[^/\s]*\.so[^/\s]*)$", maps, re.MULTILINE)
    return list(dict.fromkeys(found))


def _symbol(name: str) -> Callable[..., int] | None:
    """A function of the MPI library that mpi4py loaded, whose symbols may not be global."""
    for path in libraries():
        try:
            function: Callable[..., int] = getattr(ctypes.CDLL(path, os.RTLD_NOLOAD), name)
        except (OSError, AttributeError):
            continue
        return function
    return None


def _works(device: int | None) -> bool:
    try:
        import cupy

        with cupy.cuda.Device(device):
            return int(cupy.zeros(1, dtype="uint8").item()) == 0
    except Exception:  # CuPy missing, driver missing or too old, no device, one that is broken
        return False


class CudaMPITransport(MPITransport):
    """``MPITransport`` whose parts are CuPy or torch uint8 CUDA arrays, or NumPy arrays.

    MPI knows no streams: an exchange first waits for the arrays' current streams, which may still
    write what is sent or read what is overwritten. Point-to-point messages only: Open MPI's
    non-blocking collectives do not take device memory.
    """

    name = "cuda-mpi"
    device = "cuda"

    def _exchange(
        self, sends: Sequence[Part], recvs: Sequence[Part], tag: int, keep: Any = None
    ) -> Pending:
        _settle([part for _, part in (*sends, *recvs)])
        to, of = ([(r, _buffer(part)) for r, part in parts] for parts in (sends, recvs))
        return super()._exchange(to, of, tag, (sends, recvs))

    def _values(self, values: Any) -> Any:
        if isinstance(values, np.ndarray):
            return values
        _settle([values])
        return [_buffer(values), MPI.DOUBLE if "float64" in str(values.dtype) else MPI.FLOAT]


def _buffer(part: Any) -> Any:
    if isinstance(part, np.ndarray):
        return part
    return MPI.buffer.fromaddress(arrays.address(part), part.nbytes)


def _settle(parts: Sequence[Any]) -> None:
    """Waits for the streams of those parts that are on a device."""
    on_device = [part for part in parts if not isinstance(part, np.ndarray) and part.nbytes]
    if on_device:
        from mpisign.backend.cuda import streams

        for stream in dict.fromkeys(map(streams.of, on_device)):
            stream.synchronize()
