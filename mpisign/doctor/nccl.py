"""The probe that lists every libnccl of a process that has torch and CuPy."""

from __future__ import annotations

import ctypes

from mpisign.doctor import ranks, versions
from mpisign.doctor.found import Doubtful, Found, Missing


def nccl() -> Found:
    """Loads torch and CuPy into this one process, as a job does, and lists every libnccl in it."""
    users, lacks, advice = _users_of_nccl()
    if not users:
        raise Missing(", ".join(f"{name}: {why}" for name, why in lacks.items()), advice)
    files = {path: _version_of(path) for path in versions.loaded("nccl")}
    shown = [f"{name} {version}" for name, version in users.items()]
    shown += [f"{path} ({version})" for path, version in files.items()]
    details = {"users": users, "lacks": lacks, "files": files}
    different = set(users.values()) | set(files.values())
    if len(different) > 1:
        text = f"two versions in one process: {', '.join(sorted(different))}. Keep one: pip list"
        raise Doubtful(", ".join(shown), f"{text} | grep nccl, and LD_LIBRARY_PATH", details)
    return ", ".join(shown), details


def _users_of_nccl() -> tuple[dict[str, str], dict[str, str], str]:
    """NCCL's version as torch and CuPy say it, or why one has none, and how to install it."""
    users, lacks, advice = dict[str, str](), dict[str, str](), ""
    if not versions.installed("torch"):
        lacks["torch"] = "not installed"
    else:
        import torch

        dist = torch.distributed
        if dist.is_available() and dist.is_nccl_available():
            users["torch"] = ".".join(map(str, torch.cuda.nccl.version()))
        else:
            lacks["torch"] = "built without NCCL"
    from mpisign.transports import nccl_start

    try:
        users["CuPy"] = ranks.nccl_version(nccl_start.load().get_version())
    except ImportError as error:
        what, _, advice = str(error).partition(": ")
        lacks["CuPy"] = "not installed" if "needs CuPy" in what else what
    return users, lacks, advice


def _version_of(path: str) -> str:
    number = ctypes.c_int(0)
    ctypes.CDLL(path).ncclGetVersion(ctypes.byref(number))
    return ranks.nccl_version(number.value)
