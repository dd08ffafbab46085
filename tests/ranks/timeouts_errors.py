"""What four ranks of MPI hear of each other when one is late, interrupted or stuck; all end well.

Started by tests/test_timeouts.py. Every case has a communicator of its own, which it breaks.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time

import numpy as np
from keys import ctrl_c_in
from mpi4py import MPI

import mpisign
from mpisign.errors import BrokenError, CollectiveError, CollectiveTimeout

WORLD = MPI.COMM_WORLD
RANK, SIZE = WORLD.rank, WORLD.size
X = np.ones(1000)
assert SIZE == 4


def vote(comm, **options):
    return comm.majority_vote(X, algorithm="alltoall", **options)


def raised(kind, call):
    began = time.monotonic()
    try:
        call()
    except kind as error:
        assert type(error) is kind, repr(error)
        return error, time.monotonic() - began
    raise AssertionError(f"rank {RANK}: no {kind.__name__}")


def did_not_come(error, who, seconds):
    found = re.match(rf"{who} did not come in (\d\.\d) s \(timeout= of", str(error))
    assert found and 0.6 <= float(found[1]) < 2.5 and error.ranks == (3,), error
    assert seconds < 6


def broken_for_good(comm, reason):
    error, seconds = raised(BrokenError, lambda: vote(comm))
    assert f"broke off earlier: {reason}" in str(error) and seconds < 0.1
    assert comm.majority_vote_async(X, algorithm="alltoall").done()  # over, with the error


def a_late_rank_is_told_of_a_small_vote():
    """Whose ballots all came with the headers: there is nothing left that it would wait for."""
    comm = mpisign.Communicator(WORLD, timeout=0.6)
    comm.majority_vote(X)
    if RANK == 3:
        time.sleep(3.8)
    error, _ = raised(CollectiveTimeout, lambda: comm.majority_vote(X))
    assert error.ranks == (3,), error


def a_late_rank_is_named_and_told():
    """With votes in flight, one of which is asked for instead of waited for."""
    comm = mpisign.Communicator(WORLD, timeout=0.6)
    vote(comm)
    if RANK == 3:
        time.sleep(3.8)
        error, seconds = raised(CollectiveTimeout, lambda: vote(comm, step=70))
        text = "majority_vote: step 70: ranks 0-2 gave up on this rank, 3, after "
        assert str(error).startswith(text) and error.ranks == (3,), error
        assert seconds < 2
        return broken_for_good(comm, error)
    handles = [comm.majority_vote_async(X, step=70 + i, algorithm="alltoall") for i in range(3)]
    if RANK == 1:
        until = time.monotonic() + 10
        while not handles[0].done():
            assert time.monotonic() < until, "done() hangs"
            time.sleep(0.01)
    error, seconds = raised(CollectiveTimeout, handles[0].wait)
    did_not_come(error, "majority_vote: step 70: rank 3", seconds)
    for handle in handles[1:]:
        assert handle.done()
        error_too, _ = raised(BrokenError, handle.wait)
        assert f"broke off with an earlier collective: {error}" in str(error_too)
    broken_for_good(comm, error)


def an_interrupted_rank_is_named_at_once():
    comm = mpisign.Communicator(WORLD, timeout=60.0)
    WORLD.Barrier()
    if RANK == 1:
        ctrl_c_in("wait")
        try:
            vote(comm)
        except KeyboardInterrupt:
            return broken_for_good(comm, "majority_vote: interrupted")
        raise AssertionError("not interrupted")
    if RANK == 3:
        time.sleep(2.0)  # whom all wait for
    error, seconds = raised(CollectiveError, lambda: vote(comm))
    assert str(error) == "majority_vote: rank 1 broke off: interrupted", error
    assert seconds < 2.0, seconds
    broken_for_good(comm, error)


def a_rank_that_breaks_off_alone_is_named_at_once():
    comm = mpisign.Communicator(WORLD, timeout=60.0)

    def steps(line):
        rows = np.zeros((SIZE, 1), dtype=np.uint8)
        yield line.allgather(np.zeros(1, dtype=np.uint8), rows)
        if RANK == 2:
            raise MemoryError("all gone")
        yield line.allgather(np.zeros(1, dtype=np.uint8), rows)

    call = comm.engine.submit("large", steps).wait
    if RANK == 2:
        error, _ = raised(MemoryError, call)
        return broken_for_good(comm, error)
    error, seconds = raised(CollectiveError, call)
    assert str(error) == "large: rank 2 broke off: MemoryError: all gone", error
    assert seconds < 2.0
    broken_for_good(comm, error)


def a_chain_of_waits_names_its_end():
    """Rank 0 waits for 1, 1 for 2, 2 for 3, which is elsewhere: nobody names 1 or 2."""
    comm = mpisign.Communicator(WORLD, timeout=0.6)
    if RANK == 3:
        return time.sleep(3.6)

    def chain(line):
        byte = np.zeros(1, dtype=np.uint8)
        yield line.exchange([], [(RANK + 1, byte)])
        yield line.exchange([(RANK - 1, byte)] if RANK else [], [])

    error, seconds = raised(CollectiveTimeout, comm.engine.submit("chain", chain, 7).wait)
    did_not_come(error, "chain: step 7: rank 3", seconds)
    broken_for_good(comm, error)


def a_stopped_rank_that_wakes_in_time_to_answer_is_named():
    """It is in the middle of a vote, and wakes when the others have given up but ask who is there.

    Whatever it may complete by then, it hears of that.
    """
    comm = mpisign.Communicator(WORLD, timeout=1.0)
    vote(comm)
    WORLD.Barrier()
    if RANK == 3:
        me = os.getpid()
        subprocess.Popen(["sh", "-c", f"sleep 2.4; kill -CONT {me}"])
        threading.Timer(0.1, os.kill, (me, signal.SIGSTOP)).start()
        error, _ = raised(CollectiveTimeout, lambda: [vote(comm), vote(comm)])
        assert "ranks 0-2 gave up on this rank, 3, after 1." in str(error), error
        assert error.ranks == (3,)
        return
    if RANK == 0:
        time.sleep(0.5)
    error, _ = raised(CollectiveTimeout, lambda: vote(comm, step=1))
    text = r"majority_vote: step 1: rank 3 did not come in 1\.\d s \(rank 3 started it and does not"
    assert re.match(text, str(error)) and error.ranks == (3,), error


for case in (
    a_late_rank_is_named_and_told,
    a_late_rank_is_told_of_a_small_vote,
    an_interrupted_rank_is_named_at_once,
    a_rank_that_breaks_off_alone_is_named_at_once,
    a_chain_of_waits_names_its_end,
    a_stopped_rank_that_wakes_in_time_to_answer_is_named,
):
    case()
    WORLD.Barrier()
print(f"rank {RANK} is done", flush=True)
