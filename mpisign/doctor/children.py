"""Runs probes in processes of their own, with a time limit: one that crashes is an answer."""

from __future__ import annotations

import contextlib
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
_running: set[subprocess.Popen[str]] = set()


def environment(*, in_job: bool) -> dict[str, str]:
    """This process's environment; in a job without the traces of its launcher."""
    env = {k: v for k, v in os.environ.items() if not (in_job and _LAUNCHERS.match(k))}
    # mpirun refuses root, which is a container's only user.
    env.setdefault("OMPI_ALLOW_RUN_AS_ROOT", "1")
    env.setdefault("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
    # Children find mpisign where this process did, also from another folder.
    env["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    return env


def ask(
    probe: str, *, seconds: float = 60, launcher: Sequence[str] = (), in_job: bool = False
) -> dict[str, Any]:
    """``probes.answer(probe)`` of a child started by ``launcher``; a crash is "broken".

    ``in_job``: this process belongs to a job, and the child shall not.
    """
    with tempfile.TemporaryDirectory(prefix="mpisign-doctor-") as folder:
        file = Path(folder) / "answer"
        command = [*launcher, sys.executable, "-m", "mpisign.doctor.probes", probe, str(file)]
        status, output = run(command, seconds, environment(in_job=in_job), inherit=not in_job)
        if status == 0 and file.exists():
            answer: dict[str, Any] = json.loads(file.read_text())
            return answer
    advice = ""
    if status is None:
        advice = "on a busy machine, or a slow disk, give it longer: --seconds"
        found = f"no answer within {seconds:g} s"
    else:
        found = f"died of {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    if lines := [line.strip() for line in output.splitlines() if re.search(r"\w{3}", line)]:
        found += f": {lines[-1][:200]}"
    details = {"output": output[-4000:], "command": command}
    return {"state": "broken", "found": found, "advice": advice, "details": details}


def run(
    command: list[str], seconds: float, env: dict[str, str], *, inherit: bool = False
) -> tuple[int | None, str]:
    """Exit status, None after a timeout, and what was printed.

    ``inherit``: the child keeps this process's open files. MPICH's launchers speak to a rank
    through one of them.
    """
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
            close_fds=not inherit,
        )
    except OSError as error:
        return 127, str(error)
    _running.add(process)
    try:
        output, _ = process.communicate(timeout=seconds)
        return process.returncode, output
    except subprocess.TimeoutExpired:
        _kill(process)
        return None, process.communicate()[0]
    finally:
        _running.discard(process)


def kill_all() -> None:
    """Ends all children that run now, and theirs."""
    for process in list(_running):
        _kill(process)


def _kill(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # launchers' children too
