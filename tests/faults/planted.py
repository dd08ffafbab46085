"""Jobs that must not be found to end well: ``scripts/check-faults --self-test``."""

from __future__ import annotations

import subprocess
import time
from typing import Any

from faults.kinds import kind

_here = {"fronts": ("functions",), "wires": ("mpi",), "planted": True, "ranks": (3,)}


@kind("right", everyone=True, **_here)
def wrong_result(fault: Any) -> None:
    """Takes a step twice, as do all."""
    if fault.rank != fault.job.odd:
        fault.front.x += 1


@kind("right", settings={"limit": 12}, **_here)
def hang(fault: Any) -> None:
    """Does not end, and all others have."""
    fault.front.finish()
    time.sleep(1000)


@kind("right", **_here)
def orphan(fault: Any) -> None:
    """Leaves a process behind."""
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    subprocess.Popen(["sleep", "1000"], start_new_session=True, stderr=subprocess.DEVNULL, **quiet)


@kind("named", everyone=True, **_here)
def names_nobody(fault: Any) -> None:
    """All raise an error that names no rank."""
    raise RuntimeError("some rank did something")


@kind("named", everyone=True, **_here)
def accuses_another(fault: Any) -> None:
    """All raise an error that names an innocent rank."""
    raise RuntimeError(f"rank {(fault.job.odd + 1) % fault.job.ranks} did not come")


@kind("named", **_here)
def nothing(fault: Any) -> None:
    """No error where one is due."""
