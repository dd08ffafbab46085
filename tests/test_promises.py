"""What a step promises, over every front end: one job for each launcher and number of ranks.

The promises are functions in ranks/promises_*.py, the front ends one interface in
ranks/front_ends.py; docs/promises.md says them in words.
"""

from __future__ import annotations

import json
import re
import sys

import pytest
from front_ends import HOROVOD, JOBS
from launchers import ONE_THREAD, RANKS, ROOT, find, mpirun, run, with_tests
from promises import cells

ENV = {
    **ONE_THREAD,
    "GLOO_SOCKET_IFNAME": "lo",
    "MPISIGN_TIMEOUT": "5",  # of ranks that wait for one which broke a promise
    "HOROVOD_STALL_CHECK_TIME_SECONDS": "5",
    "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": "15",
}
#: Cells whose mend is not there yet, with the reason: strict, so that a mend must take them out.
UNMENDED: dict[str, str] = {}
PAGE = ROOT / "docs" / "promises.md"
#: Two ranks tie, three do not. The others with MPISIGN_TEST_ALL=1.
USUAL = {("torchrun", 2), ("mpirun", 3)}
_RUNS: dict[tuple[str, int], tuple[dict, str]] = {}


def outcomes(launcher, ranks, folder):
    """({promise-front: what went wrong, by rank}, the job's output), of a job that runs once."""
    if (launcher, ranks) not in _RUNS:
        file = folder / "outcomes"
        script = [RANKS / "promises.py", launcher, file]
        patient = {"check": False, "timeout": 580}
        _RUNS[launcher, ranks] = {}, "it hung"  # what all cells say if it does: it runs once
        if launcher == "torchrun":
            many = [find("torchrun"), "--standalone", "--nproc-per-node", ranks]
            done = run([*many, *script], env=ENV, **patient)
        else:
            done = mpirun(ranks, sys.executable, *script, env=with_tests(**ENV), **patient)
        told = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        found = {f"{t['promise']}-{t['front']}": t.get("wrong", []) for t in told}
        _RUNS[launcher, ranks] = found, done.stdout
    return _RUNS[launcher, ranks]


def marks_of(launcher, ranks, name, front):
    marks = [pytest.mark.horovod] if front in HOROVOD else []
    if (launcher, ranks) not in USUAL:
        marks.append(pytest.mark.many)
    if why := UNMENDED.get(f"{name}-{front}"):
        marks.append(pytest.mark.xfail(reason=why, strict=True))
    return marks


CASES = [
    pytest.param(
        launcher,
        ranks,
        f"{name}-{front}",
        marks=marks_of(launcher, ranks, name, front),
        id=f"{name}-{front}-{launcher}{ranks}",
    )
    for launcher in JOBS
    for ranks in (2, 3)
    for name, front in cells(JOBS[launcher])
]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("launcher, ranks, cell", CASES)
def test_promise(launcher, ranks, cell, tmp_path):
    if cell.endswith(HOROVOD):
        pytest.importorskip("horovod.torch", reason="Horovod is not installed: run scripts/setup")
    found, output = outcomes(launcher, ranks, tmp_path)
    if cell not in found:
        pytest.fail(f"the job ended before {cell}:\n{output[-6000:]}")
    wrong = found[cell]
    assert not wrong, "\n".join(f"rank {r}: {w}" for r, w in enumerate(wrong))


def test_the_page_has_a_cell_for_every_test_and_a_test_for_every_cell():
    page = PAGE.read_text()
    named = re.findall(r"`(\w+-\w+)`", "".join(x for x in page.splitlines(True) if x[0] == "|"))
    assert len(named) == len(set(named))
    assert set(named) == {f"{name}-{front}" for name, front in cells()}


def test_each_cell_without_a_test_has_its_reason():
    page = PAGE.read_text()
    rows = [x.strip("|\n").split("|") for x in page.splitlines() if re.match(r"\|.*`\w+-\w+`", x)]
    letters = {cell.strip() for row in rows for cell in row[1:] if "`" not in cell}
    assert letters == set(re.findall(r"^- \*\*(\w)\*\*: ", page, re.MULTILINE))
