"""Ranks that do not come, come late, die or disagree on what to call: nobody waits for ever."""

from __future__ import annotations

import re
import sys
import threading
import time

import numpy as np
import pytest
from launchers import RANKS, mpirun, with_tests

from mpisign import Communicator, simulation
from mpisign.engine import failure_detection as giving_up
from mpisign.errors import BrokenError, CollectiveError, CollectiveTimeout, WireError
from mpisign.transports import threads
from mpisign.transports.base import LEFT, TAGS

X = np.ones(1000)


@pytest.mark.mpi
def test_what_ranks_hear_of_each_other_over_mpi():
    output = mpirun(4, sys.executable, RANKS / "timeouts_errors.py", timeout=60).stdout
    assert all(f"rank {r} is done" in output for r in range(4)), output
    assert "MPI_Abort" not in output


def gone(pid):
    """Whether a process ends within seconds; one that nobody waited for yet has ended too."""
    for _ in range(50):
        try:
            with open(f"/proc/{pid}/stat") as stat:
                if stat.read().rsplit(")", 1)[1].split()[0] == "Z":
                    return True
        except OSError:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("never comes", "majority_vote: step 5: rank 2 did not come in 2\\.[0-9] s"),
        ("votes less often", "majority_vote: step 5: rank 2 did not come in 2\\.[0-9] s"),
        ("raises", "RuntimeError: of its own"),
        ("dies", "Exit code: +7"),
        ("dies quietly", "without calling .finalize"),
        ("makes no communicator", "Communicator: ranks did not come in 2\\.0 s"),
    ],
)
def test_the_job_ends_where_a_rank(what, expected):
    # Most of it for a busy machine to start ranks; less than the 60 s that rank 2 sleeps.
    job = mpirun(3, sys.executable, RANKS / "timeouts_ends.py", what, timeout=55, check=False)
    assert job.returncode != 0, job.stdout
    assert re.search(expected, job.stdout), job.stdout
    processes = re.findall(r"rank \d is process (\d+)", job.stdout)
    assert len(processes) == 3 and all(gone(pid) for pid in processes), job.stdout
    if what in ("never comes", "votes less often"):  # both others raise; their lines may mix
        assert len(re.findall(expected, job.stdout)) == 2, job.stdout


def test_a_horovod_job_ends_where_a_rank_is_stopped():
    """Whom hvd.shutdown would wait for."""
    pytest.importorskip("horovod.torch", reason="not installed: run scripts/setup")
    command = [RANKS / "timeouts_ends.py", "is stopped", "horovod"]
    job = mpirun(3, sys.executable, *command, timeout=120, check=False, env=with_tests())
    assert job.returncode != 0 and "ends the job: Horovod waits for ranks" in job.stdout, job.stdout
    assert job.stdout.count("step 5: rank 2 did not come in 2.") == 2, job.stdout
    processes = re.findall(r"rank \d is process (\d+)", job.stdout)
    assert len(processes) == 3 and all(gone(pid) for pid in processes), job.stdout


# The same among threads.


def outcomes_of(size, function, **options):
    def run(comm):
        try:
            return function(comm)
        except Exception as error:
            return error

    return simulation.run(size, run, **options)


@pytest.fixture
def short_grace(monkeypatch):
    """Ranks that answer no roll call are not waited for as long."""
    monkeypatch.setattr(giving_up, "_GRACE", 0.6)


def test_ranks_that_vote_more_often_than_others():
    def votes(comm):
        for i in range(4 if comm.rank in (1, 4) else 3):
            comm.majority_vote(X, step=10 + i)
        return "all done"

    outcomes = outcomes_of(5, votes, timeout=0.3)
    assert [outcomes[r] for r in (0, 2, 3)] == ["all done"] * 3
    for r in (1, 4):
        assert isinstance(outcomes[r], CollectiveTimeout) and outcomes[r].ranks == (0, 2, 3)
        assert "majority_vote: step 13: ranks 0, 2-3 did not come in " in str(outcomes[r])


def test_nobody_names_a_rank_that_waits_itself():
    """Of 4 shards only 1 and 3 have bytes: rank 2 waits for their owners, they for rank 0."""

    def run(comm):
        if comm.rank == 0:
            wire = comm.engine.transport
            send = wire._exchange
            wire._exchange = lambda sends, recvs, tag: send([], recvs, tag)
            wire.post = lambda notice: None
            wire.notices = lambda: []
        return comm.majority_vote(np.ones(16), algorithm="alltoall", step=3)

    for outcome in outcomes_of(4, run, timeout=0.4)[1:]:
        assert isinstance(outcome, CollectiveTimeout) and outcome.ranks == (0,), outcome


def test_a_message_that_is_lost_between_ranks_that_are_there():
    def run(comm):
        def steps(line):
            byte = np.zeros(1, dtype=np.uint8)
            yield line.exchange([], [((line.rank + 1) % line.size, byte)])

        return comm.engine.submit("ring", steps, 8).wait()

    for outcome in outcomes_of(3, run, timeout=0.3):
        assert isinstance(outcome, CollectiveTimeout) and outcome.ranks == ()
        assert re.fullmatch(
            r"ring: step 8: ranks waited \d\.\d s for each other in the same call "
            r"\(rank 0 for rank 1, rank 1 for rank 2, rank 2 for rank 0\): "
            r"one of them did not send what the others wait for",
            str(outcome),
        )


def test_calls_in_another_order_are_told_as_such():
    def run(comm):
        def waits_for(rank):
            def steps(line):
                byte = np.zeros(1, dtype=np.uint8)
                yield line.exchange([], [(rank, byte)])

            return steps

        if comm.rank == 0:
            comm.engine.submit("first", lambda line: iter(()))
        return comm.engine.submit("second", waits_for(1 - comm.rank)).wait()

    for outcome in outcomes_of(2, run, timeout=0.3):
        assert "(rank 0 in call 2, rank 1 in call 1): all must call the same" in str(outcome)


def test_a_rank_whose_program_ends_is_not_waited_for(short_grace):
    began = time.monotonic()

    def run(comm):
        comm.majority_vote(X)
        if comm.rank == 1:
            raise RuntimeError("of its own")
        with pytest.raises(CollectiveTimeout) as raised:
            comm.majority_vote(X, step=4)
        text = "majority_vote: step 4: rank 1 did not come in "
        assert str(raised.value).startswith(text)
        assert str(raised.value).endswith("s (the program of rank 1 has ended)")

    with pytest.raises(RuntimeError, match="of its own"):
        simulation.run(4, run, timeout=60.0)
    assert time.monotonic() - began < 10


def test_what_a_rank_sent_before_its_program_ended_still_counts():
    def run(comm):
        wire = comm.engine.transport
        if comm.rank == 1:
            wire.post(LEFT)
        time.sleep(0.3 * comm.rank)
        return comm.majority_vote(X, algorithm="alltoall").sum()

    assert simulation.run(3, run, timeout=60.0) == [1000] * 3


def test_an_interrupt_while_a_vote_starts_is_told_too():
    """In the packing of a vote that nobody waits for yet."""

    def run(comm):
        def steps(line):
            if comm.rank == 1:
                raise KeyboardInterrupt
            yield line.allgather(np.zeros(1, np.uint8), np.zeros((3, 1), np.uint8))

        if comm.rank == 1:
            with pytest.raises(KeyboardInterrupt):
                comm.engine.submit("pack", steps)
        else:
            with pytest.raises(CollectiveError, match="rank 1 broke off: interrupted"):
                comm.engine.submit("pack", steps).wait()
        with pytest.raises(BrokenError, match="broke off earlier"):
            comm.majority_vote(X)

    began = time.monotonic()
    simulation.run(3, run, timeout=60.0)
    assert time.monotonic() - began < 10


def test_an_interrupt_in_another_vote_than_the_one_waited_for():
    """The vote that the key hit is over, and must not count as done."""

    def run(comm):
        def steps(line):
            yield line.allgather(np.zeros(1, np.uint8), np.zeros((2, 1), np.uint8))
            if comm.rank == 1:
                raise KeyboardInterrupt

        late = 0.3 if comm.rank == 0 else 0.0  # rank 1 waits for the vote, which cannot end yet
        comm.engine.transport.sleep(late)
        hit = comm.engine.submit("hit", steps)
        comm.engine.transport.sleep(late)
        other = comm.majority_vote_async(X, algorithm="alltoall")
        if comm.rank == 1:
            with pytest.raises(KeyboardInterrupt):
                other.wait()
            with pytest.raises(CollectiveError, match="hit: interrupted"):
                hit.wait()

    simulation.run(2, run, timeout=60.0)


class Gate:
    """An exchange that is over when the test says so."""

    def __init__(self):
        self.open = threading.Event()

    def done(self):
        return self.open.is_set()

    def wait(self, seconds=None):
        return self.open.wait(seconds)

    def missing(self):
        return []


class Forgetful(Gate):
    """An exchange that says once what is wrong with it, to whoever waits."""

    def wait(self, seconds=None):
        if not self.open.is_set():
            self.open.set()
            raise WireError("rank 2 sent 3 bytes where 7 were due")
        return True


def test_an_error_counts_wherever_it_is_met():
    def run(comm):
        def steps(line):
            yield Forgetful()
            return "as if nothing had been"

        return comm.engine.submit("exchange", steps).wait()

    (outcome,) = outcomes_of(1, run)
    assert str(outcome) == "exchange: rank 2 sent 3 bytes where 7 were due"


def test_a_collective_in_flight_for_very_long_keeps_its_tag():
    """The call TAGS later has the same: their messages would meet, had it not to wait."""

    def run(comm):
        gate = Gate()

        def steps(line):
            yield gate
            rows = np.zeros((2, 1), np.uint8)
            yield line.exchange([(1 - line.rank, rows[0] + 5)], [(1 - line.rank, rows[1])])
            return rows[:, 0].tolist()

        slow = comm.engine.submit("slow", steps)
        threading.Timer(0.5, gate.open.set).start()
        for _ in range(TAGS + 5):
            assert comm.majority_vote(X, algorithm="alltoall").sum() == 1000
        assert slow.over
        return slow.wait()

    assert simulation.run(2, run, timeout=20.0) == [[0, 5], [0, 5]]


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf")])
def test_a_timeout_that_is_none(timeout):
    with pytest.raises(ValueError, match="timeout must be a positive number of seconds"):
        Communicator(threads.ThreadTransport(threads.World(1), 0), timeout=timeout)


def test_the_timeout_of_the_environment(monkeypatch, short_grace):
    monkeypatch.setenv("MPISIGN_TIMEOUT", "0.2")

    def run(comm):
        if comm.rank:
            return comm.majority_vote(X)

    assert isinstance(outcomes_of(2, run)[1], CollectiveTimeout)
    monkeypatch.setenv("MPISIGN_TIMEOUT", "soon")
    with pytest.raises(ValueError, match="MPISIGN_TIMEOUT must be a positive number"):
        Communicator(threads.ThreadTransport(threads.World(1), 0))
