"""Probes in processes of their own, each with a time limit."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

#: What launchers leave in the environment: a child with them would look for the job's other ranks.
_LAUNCHERS = re.compile(
    r"(OMPI_(?!ALLOW)|PMIX_|PMI_|PRTE_|HYD|MPI_LOCAL|MV2_COMM|MVP_COMM|PALS_|JSM_|FLUX_|HOROVOD_"
    r"|TORCHELASTIC_|SLURM_(PROCID|LOCALID|STEP|NTASKS)|(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)$"
    r"|MASTER_(ADDR|PORT)$)"
)


def environment(*, in_job: bool) -> dict[str, str]:
    """This process's, without the traces of the launcher that started it."""
    kept = {k: v for k, v in os.environ.items() if not (in_job and _LAUNCHERS.match(k))}
    # mpirun puts its own folder there, and refuses root, which a container's only user is.
    kept.setdefault("OMPI_ALLOW_RUN_AS_ROOT", "1")
    kept.setdefault("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
    # Children find mpisign where this process did, also from another folder.
    kept["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    return kept


def ask(
    probe: str, *, seconds: float = 60, launcher: Sequence[str] = (), in_job: bool = False
) -> dict[str, Any]:
    """``probes.answer(probe)`` of a child, started by ``launcher`` if one is given.

    A crash or silence is an answer too: state "broken".
    """
    with tempfile.TemporaryDirectory(prefix="mpisign-doctor-") as folder:
        file = Path(folder) / "answer"
        command = [*launcher, sys.executable, "-m", "mpisign.doctor.probes", probe, str(file)]
        status, output = _run(command, seconds, environment(in_job=in_job))
        if status == 0 and file.exists():
            told: dict[str, Any] = json.loads(file.read_text())
            return told
    if status is None:
        what = f"no answer within {seconds:g} s"
    elif status < 0:
        what = f"died of {signal.Signals(-status).name}"
    else:
        what = f"exit status {status}"
    lines = [line.strip() for line in output.splitlines() if re.search(r"\w{3}", line)]
    told_last = f": {lines[-1][:200]}" if lines else ""
    return {
        "state": "broken",
        "found": what + told_last,
        "advice": "",
        "details": {"output": output[-4000:], "command": command},
    }


def _run(command: list[str], seconds: float, env: dict[str, str]) -> tuple[int | None, str]:
    """Exit status, None for one that had to be killed, and what was printed."""
    try:
        process = subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        return 127, str(error)
    try:
        output, _ = process.communicate(timeout=seconds)
        return process.returncode, output
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # launchers' children too
        return None, process.communicate()[0]
