"""What is installed, in one line, for ``mpisign --version``: no torch is imported, no MPI started.

Versions come from the packages' metadata. Only the MPI library is loaded, to say which one it is.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from pathlib import Path

import numpy as np

import mpisign
from mpisign import _kernels

#: Distributions, and their names in the line.
_PACKAGES = {"torch": "torch", "mpi4py": "mpi4py", "horovod": "Horovod", "cupy": "CuPy"}
#: A regular expression: libmpi.so, libmpich.so, libmpi_gnu_123.so, and not Open MPI's for Fortran.
MPI_FILE = r"mpi(?!_cxx|_mpifh|_usempi)[^/\s]*"
#: What the kernels call an instruction set -> its name.
ISAS = {"avx512": "AVX-512", "avx2": "AVX2", "portable": "portable C"}


def one_line() -> str:
    """The text of ``mpisign --version``."""
    parts = [f"mpisign {with_commit()}", f"kernels {ISAS.get(_kernels.isa(), _kernels.isa())}"]
    parts += [f"Python {platform.python_version()}", f"NumPy {np.__version__}"]
    for package, name in _PACKAGES.items():
        version = installed(package)
        parts.append(f"{name} {version}" if version else f"no {name}")
        if package == "mpi4py" and version:
            parts[-1] += f" with {mpi_library()[0] or 'no MPI library'}"
    return ", ".join([*parts, platform.platform()])


def installed(package: str) -> str:
    """A distribution's version, "" if it is not installed. Imports nothing.

    CuPy has a distribution for each version of CUDA.
    """
    names = [package]
    if package == "cupy":
        names = ["cupy-cuda13x", "cupy-cuda12x", "cupy-cuda11x", "cupy"]
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return ""


def with_commit() -> str:
    """mpisign's version, and the git commit where it is known: "0.1.0 (git 1234567)"."""
    commit = _commit_of_checkout() or _commit_of_install()
    return f"{mpisign.__version__} (git {commit})" if commit else mpisign.__version__


def _commit_of_checkout() -> str:
    root = Path(mpisign.__file__).resolve().parent.parent
    if not ((root / ".git").exists() and (root / "kernels").is_dir()):
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def _commit_of_install() -> str:
    """Of ``pip install git+https://...``, which notes what it installed."""
    try:
        note = importlib.metadata.distribution("mpisign").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return ""
    found = json.loads(note or "{}").get("vcs_info", {}).get("commit_id", "")
    return str(found)[:7]


def mpi_library() -> tuple[str, str]:
    """(name and version, path) of the MPI library that mpi4py loads, ("", "") without one.

    Loads it in this process and does not start it: afterwards ``import mpi4py.MPI`` does not
    start MPI either.
    """
    try:
        import mpi4py

        mpi4py.rc.initialize = mpi4py.rc.finalize = False
        from mpi4py import MPI
    except (ImportError, RuntimeError):  # RuntimeError: no library
        return "", ""
    return short_name(MPI.Get_library_version()), " ".join(loaded(MPI_FILE))


def short_name(library: str) -> str:
    """The first line of MPI's own text: "Open MPI v4.1.8", "MPICH Version: 5.0.2"."""
    lines = library.strip("\0 \n").splitlines() or [""]
    return re.sub(r"\s+", " ", lines[0].split(",")[0].strip("\0 "))


def loaded(name: str) -> list[str]:
    """The files of a library, a regular expression, that this process has loaded."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:  # not Linux
        return []
    found = re.findall(rf"\s(/\S*/lib{name}\.so[^/\s]*)$", maps, re.MULTILINE)
    return sorted({os.path.realpath(path) for path in found})
