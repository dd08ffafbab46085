"""What a step promises, over every front end: one job for each launcher and number of ranks.

The promises are functions in ranks/promises_*.py, the front ends one interface in
ranks/front_ends.py; docs/promises.md says them in words.
"""

from __future__ import annotations

import json
import sys

import pytest
from front_ends import HOROVOD, JOBS
from launchers import ONE_THREAD, RANKS, find, mpirun, run
from promises import cells

ENV = {
    **ONE_THREAD,
    "GLOO_SOCKET_IFNAME": "lo",
    "MPISIGN_TIMEOUT": "5",  # of ranks that wait for one which broke a promise
    "HOROVOD_STALL_CHECK_TIME_SECONDS": "5",
    "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": "15",
}
_RUNS: dict[tuple[str, int], tuple[dict, str]] = {}


def outcomes(launcher, ranks, folder):
    """({promise-front: what went wrong, by rank}, the job's output), of a job that runs once."""
    if (launcher, ranks) not in _RUNS:
        file = folder / "outcomes"
        script = [RANKS / "promises.py", launcher, file]
        if launcher == "torchrun":
            many = [find("torchrun"), "--standalone", "--nproc-per-node", ranks]
            done = run([*many, *script], env=ENV, check=False)
        else:
            done = mpirun(ranks, sys.executable, *script, env=ENV, check=False)
        told = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        found = {f"{t['promise']}-{t['front']}": t.get("wrong", []) for t in told}
        _RUNS[launcher, ranks] = found, done.stdout
    return _RUNS[launcher, ranks]


CASES = [
    pytest.param(
        launcher,
        ranks,
        f"{name}-{front}",
        marks=[pytest.mark.horovod] * (front in HOROVOD),
        id=f"{name}-{front}-{launcher}{ranks}",
    )
    for launcher in JOBS
    for ranks in (2, 3)
    for name, front in cells(JOBS[launcher])
]


@pytest.mark.parametrize("launcher, ranks, cell", CASES)
def test_promise(launcher, ranks, cell, tmp_path):
    if cell.endswith(HOROVOD):
        pytest.importorskip("horovod.torch", reason="Horovod is not installed: run scripts/setup")
    found, output = outcomes(launcher, ranks, tmp_path)
    if cell not in found:
        pytest.fail(f"the job ended before {cell}:\n{output[-6000:]}")
    wrong = found[cell]
    assert not wrong, "\n".join(f"rank {r}: {w}" for r, w in enumerate(wrong))
