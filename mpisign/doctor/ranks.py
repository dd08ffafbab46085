"""What each rank of the job says of itself, and in what ranks differ."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from mpisign import launcher
from mpisign.doctor import devices, disk, versions

#: The variables in which ranks often differ without anybody's wish, by their start.
_VARIABLES = ("MPISIGN_", "NCCL_", "UCX_", "OMP_NUM_THREADS")
#: A rank's facts as JSON text, ASCII, padded with zeros: what ranks send to each other.
_MESSAGE = 16 << 10
_TIMEOUT = 45.0  # seconds that ranks wait for each other
#: What all ranks should have in common: a fact, and its name in the table.
COMPARED = {
    "python": "Python", "executable": "Python's path", "mpisign": "mpisign",
    "mpisign_path": "mpisign's path", "numpy": "NumPy", "torch": "torch", "mpi4py": "mpi4py",
    "mpi": "MPI library", "mpi_path": "MPI library's path", "threads_of_mpi": "MPI thread level",
    "cuda_mpi": "MPI CUDA-aware", "horovod": "Horovod", "cupy": "CuPy", "nccl": "libnccl.so.2",
    "isa": "kernels", "cores": "cores", "threads": "threads", "gpus": "GPUs", "driver": "driver",
    "cache": "kernel cache", "system": "system", "machine": "processor", "size": "ranks seen",
    "variables": "variables",
}  # fmt: skip


def facts() -> dict[str, Any]:
    """This process's; imports neither torch nor Horovod nor CuPy, and does not start MPI."""
    from mpisign import _kernels
    from mpisign.backend import threads

    folder, affinity = disk.kernel_cache(), sorted(os.sched_getaffinity(0))
    kind = disk.file_system(folder)
    own: dict[str, Any] = {
        "host": platform.node(),
        "rank": launcher.rank(),
        "local_rank": launcher.local_rank(),
        "launcher": launcher.variable(),
        "launched": launcher.launched_size(),
        "python": platform.python_version(),
        "executable": sys.executable,
        "mpisign": versions.with_commit(),
        "mpisign_path": os.path.dirname(versions.mpisign.__file__),
        "numpy": np.__version__,
        "nccl": _system_nccl(),
        "isa": versions.ISAS.get(_kernels.isa(), _kernels.isa()),
        "cores": len(affinity),
        "affinity": affinity,
        "threads": threads.count(),
        "cache": f"{folder} on {kind or 'an unknown file system'}",
        "cache_on_network": disk.is_network(kind),
        "system": platform.platform(),
        "machine": platform.machine(),
        "variables": {k: v for k, v in sorted(os.environ.items()) if k.startswith(_VARIABLES)},
    }
    own |= {name: versions.installed(name) for name in ("torch", "mpi4py", "horovod", "cupy")}
    seen = devices.seen()
    own["driver"] = f"CUDA {devices.cuda_version(seen.driver)}" if seen.driver else ""
    own["gpus"] = [device["name"] for device in seen.devices]
    # As front ends choose: by the local rank, among those that this process sees.
    number = (own["local_rank"] or 0) % len(seen.devices) if seen.devices else None
    own["device"] = number
    own["device_id"] = None if number is None else seen.devices[number]["uuid"]
    return own


def _system_nccl() -> str:
    """The version of the libnccl.so.2 that the loader finds, "" if it finds none."""
    try:
        library, version = ctypes.CDLL("libnccl.so.2"), ctypes.c_int(0)
        library.ncclGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return ""
    return f"{nccl_version(version.value)}, {' '.join(versions.loaded('nccl'))}"


def nccl_version(number: int) -> str:
    """NCCL's number as text: 22703 is 2.27.3; before 2.9 it was 2708 for 2.7.8."""
    if number < 10000:
        return f"{number // 1000}.{number // 100 % 10}.{number % 100}"
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


def gather() -> list[dict[str, Any]]:
    """The facts of all ranks of this process's job, by rank. Collective; alone: its own.

    Wire: an allgather of 16 KiB a rank, JSON as ASCII text padded with zeros, over what
    ``Communicator()`` picks under this launcher. Nothing is unpickled.

    Raises:
        LauncherError: the launcher started several processes and MPI sees one.
    """
    own = facts()
    if own["launched"] is None and own["rank"] is None:
        own["mpi"], own["mpi_path"] = versions.mpi_library()
        return [{**own, "transport": "alone", "size": 1}]
    from mpisign.connect import connect

    transport, _ = connect("mpisign doctor", None, _TIMEOUT)
    own |= {"transport": transport.name, "size": transport.size, "rank": transport.rank}
    own |= _of_mpi()
    text, row = _text(own), np.zeros(_MESSAGE, dtype=np.uint8)
    row[: len(text)] = np.frombuffer(text, dtype=np.uint8)
    rows = np.empty((transport.size, _MESSAGE), dtype=np.uint8)
    pending = transport.start_allgather(row, list(rows), 0)
    if not pending.wait(_TIMEOUT):
        late = pending.missing()
        raise TimeoutError(f"ranks {late or 'unknown'} did not answer within {_TIMEOUT:g} s")
    _leave()
    return [json.loads(row.tobytes().rstrip(b"\0")) for row in rows]


def _text(own: dict[str, Any]) -> bytes:
    text = json.dumps(own).encode("ascii")
    if len(text) > _MESSAGE:  # hundreds of cores, or very many variables
        own = {**own, "variables": {}, "affinity": []}
        text = json.dumps(own).encode("ascii")
    return text


def _of_mpi() -> dict[str, Any]:
    """Of the MPI that runs here, else of the library that would."""
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is None or not mpi.Is_initialized():
        name, path = versions.mpi_library()
        return {"mpi": name, "mpi_path": path}
    from mpisign.transports import cuda_mpi

    says = cuda_mpi.library_says()
    return {
        "mpi": versions.short_name(mpi.Get_library_version()),
        "mpi_path": " ".join(versions.loaded(versions.MPI_FILE)),
        "threads_of_mpi": thread_level(mpi),
        "cuda_mpi": f"{'yes' if says.aware else 'no'}: {says.why}",
    }


def thread_level(mpi: Any) -> str:
    """MPI's name of the level at which it runs, such as MPI_THREAD_MULTIPLE."""
    names = ("SINGLE", "FUNNELED", "SERIALIZED", "MULTIPLE")
    found = {getattr(mpi, f"THREAD_{name}"): f"MPI_THREAD_{name}" for name in names}
    return found[mpi.Query_thread()]


def _leave() -> None:
    """Ends this process's part of the job: at exit, one rank's end can be another's lost peer."""
    dist = sys.modules.get("torch.distributed")
    if dist is not None and dist.is_initialized():
        dist.destroy_process_group()


def differences(ranks: Sequence[dict[str, Any]]) -> dict[str, dict[str, str]]:
    """{name of a fact: {ranks as text: value}} of those in which ranks differ.

    Of variables only those that differ; each has its own name.
    """
    found: dict[str, dict[str, str]] = {}
    for key, name in COMPARED.items():
        if key != "variables":
            _note(found, name, [_shown(rank.get(key)) for rank in ranks])
            continue
        held = [rank.get(key) or {} for rank in ranks]
        for variable in sorted({v for one in held for v in one}):
            _note(found, variable, [one.get(variable, "not set") for one in held])
    return found


def _note(found: dict[str, dict[str, str]], name: str, values: list[str]) -> None:
    if len(set(values)) > 1:
        who = {v: [r for r, other in enumerate(values) if other == v] for v in values}
        found[name] = {spans(of): value for value, of in who.items()}


def _shown(value: Any) -> str:
    if isinstance(value, list):
        counted = {str(v): value.count(v) for v in value}
        return ", ".join(f"{n} x {v}" for v, n in counted.items()) or "none"
    return "none" if value in (None, "") else str(value)


def spans(numbers: Sequence[int]) -> str:
    """Numbers in order as text: 0-3, 7."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][-1] == number - 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)
