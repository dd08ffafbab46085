"""The fault campaign's short form, and that it would find what it looks for."""

from __future__ import annotations

import sys

import pytest
from faults import plan
from faults.kinds import ENDS, FRONTS, known
from faults.launch import Ended
from faults.verdict import HANG, NOBODY, ORPHAN, WELL, WRONG, Record, judge, named
from launchers import TESTS, find, run, with_tests

pytest.importorskip("mpi4py.MPI", reason="not installed: run scripts/setup")

CAMPAIGN = [sys.executable, "-m", "faults"]
WIRES = ["mpi", "torch", "horovod-mpi", "horovod-gloo"]


@pytest.mark.mpi
@pytest.mark.slow
def test_ten_jobs_end_well():
    find("mpirun")
    done = run([*CAMPAIGN, "--short"], timeout=280, check=False, env=with_tests())
    assert done.returncode == 0, done.stdout
    assert done.stdout.count(f": {WELL}, ") >= 8


@pytest.mark.mpi
def test_a_planted_orphan_and_a_wrong_result_are_found():
    """The others: ``scripts/check-faults --self-test``."""
    find("mpirun")
    for kind, word in (("orphan", ORPHAN), ("wrong-result", WRONG)):
        only = ["--only", f"{kind} functions mpi", "--jobs", "1"]
        done = run([*CAMPAIGN, *only], check=False, env=with_tests())
        assert done.returncode == 1 and f"3 ranks: {word}, " in done.stdout, done.stdout
        assert f"rank.py kind={kind} " in done.stdout


def test_a_campaign_is_drawn_by_its_seed_and_goes_everywhere():
    jobs = plan.plan(0, 200, WIRES)
    assert jobs == plan.plan(0, 200, WIRES) != plan.plan(1, 200, WIRES)
    assert {job.kind for job in jobs} == {k.name for k in known().values() if not k.planted}
    assert {(j.front, j.wire) for j in jobs} == {(f, w) for f, on in FRONTS.items() for w in on}
    assert {job.ranks for job in jobs} == {2, 3, 4} and all(j.odd < j.ranks for j in jobs)
    assert all(plan.Job.read(job.words()) == job for job in jobs)
    assert {kind.ends for kind in known().values()} == set(ENDS)
    assert len(plan.short(0, WIRES)) == len(plan.SHORT)


def test_the_ranks_that_a_message_names():
    assert named("majority_vote: ranks 0, 2-4 did not come in 1.5 s") == {0, 2, 3, 4}
    assert named("ranks disagree on seed: rank 2: 5; ranks 0-1: 3") == {0, 1, 2}
    assert named("one of 3 ranks did not send 4 bytes") == set()


def done(*calls, end="done", text=""):
    return Record([("d", right) for right in calls], end, text)


def test_what_is_judged_how():
    job = plan.Job("another-seed", "plain", "mpi", ranks=3, odd=1)
    kind, over = known()["another-seed"], Ended(1, 1.0)
    right = [done(end="error", text="ranks disagree on seed: rank 1: 5") for _ in range(3)]
    assert judge(job, kind, over, right).word == WELL
    assert judge(job, kind, Ended(None, 60.0), right).word == HANG
    assert judge(job, kind, Ended(0, 1.0, ["sleep"]), right).word == ORPHAN
    for text in ("somebody did", "rank 2 did", "ranks disagree on seed: rank 1: 6"):
        other = [right[0], right[1], done(end="error", text=text)]
        assert judge(job, kind, over, other).word == NOBODY, text
    for wrong in (done(True), done(False, end="error", text=right[0].text), done(end=None)):
        assert judge(job, kind, over, [wrong, *right[1:]]).word == WRONG
    kind = known()["late"]
    assert judge(job, kind, over, [done(True)] * 3).word == WELL
    assert judge(job, kind, over, [done(True), done(True), right[0]]).word == WRONG
    apart = Record([("e", True)], "done")
    assert judge(job, kind, over, [done(True), done(True), apart]).word == WRONG
    assert (TESTS / "faults" / "rank.py").exists()
