"""mpisign.stop_requested: one rank is asked, and all see it after the same exchange."""

from __future__ import annotations

import signal
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
from launchers import RANKS, find, run, with_tests
from wires import ENV

import mpisign
from mpisign import simulation

CALLS = {
    "planned vote": lambda comm, x: comm.majority_vote(x),
    "long vote": lambda comm, x: comm.majority_vote(np.resize(np.float32(x), 1 << 20)),
    "hierarchical": lambda comm, x: comm.majority_vote(x, algorithm="hierarchical"),
    "byzantine": lambda comm, x: comm.majority_vote(x, byzantine_f=1),
    "tally": lambda comm, x: np.stack(comm.tally(x)),
    "mean_of_signs": lambda comm, x: comm.mean_of_signs(x),
    "robust": lambda comm, x: comm.robust_aggregate(x, rule="median"),
}


def calls(comm, call, asked):
    """The call after which this rank knew, and all results; ``asked``: by rank, before which."""
    knew, results = None, []
    for i in range(6):
        if asked.get(comm.rank) == i:
            mpisign.request_stop()
        x = np.random.default_rng(10 * i + comm.rank).standard_normal(77)
        results.append(np.asarray(call(comm, x)))
        if knew is None and mpisign.stop_requested():
            knew = i
    return knew, np.concatenate([r.ravel() for r in results]).tobytes()


@pytest.mark.parametrize("name", CALLS)
def test_all_ranks_know_after_the_same_call(name):
    plain = simulation.run(3, calls, CALLS[name], {}, timeout=20)
    every = (({1: 3}, 3), ({0: 0}, 0), ({0: 2, 1: 2, 2: 2}, 2), ({2: 4, 0: 5}, 4))
    for asked, first in every[:1] if name == "long vote" else every:
        found = simulation.run(3, calls, CALLS[name], asked, timeout=20)
        assert [knew for knew, _ in found] == [first] * 3, asked
        assert [bits for _, bits in found] == [bits for _, bits in plain]
    assert not mpisign.stop_requested(), "threads that are ranks have requests of their own"


@pytest.mark.parametrize("size", [1, 2, 66])
def test_any_number_of_ranks(size):
    """66: digests of headers go first."""
    found = simulation.run(size, calls, CALLS["planned vote"], {size - 1: 3}, timeout=60)
    assert [knew for knew, _ in found] == [3] * size


def in_flight(comm):
    """Two votes in flight, waited for in other orders: each is known where it is waited for."""
    x = np.ones(9)
    comm.majority_vote(x)
    first = comm.majority_vote_async(x)
    if comm.rank == 1:
        mpisign.request_stop()
    second = comm.majority_vote_async(x)
    known = []
    if comm.rank == 2:
        second.wait()
        first.wait()
        return mpisign.stop_requested()
    for handle in (first, second):
        handle.wait()
        known.append(mpisign.stop_requested())
    assert known == [False, True]
    return known[-1]


def test_votes_in_flight():
    assert simulation.run(3, in_flight, timeout=20) == [True] * 3


def after(comm):
    """An error after the agreement, a request that is taken back, and a second one."""
    vote = partial(comm.majority_vote, nan="raise")
    vote(np.ones(9))
    if comm.rank == 0:
        mpisign.request_stop()
    x = np.ones(9)
    x[0] = np.nan if comm.rank == 1 else 1
    with pytest.raises(mpisign.errors.NaNError):
        vote(x)
    raised = mpisign.stop_requested()
    vote(np.ones(9))
    known = [raised, mpisign.stop_requested()]
    mpisign.request_stop(False)
    known.append(mpisign.stop_requested())
    vote(np.ones(9))
    known.append(mpisign.stop_requested())
    if comm.rank == 1:
        mpisign.request_stop()
    vote(np.ones(9))
    return [*known, mpisign.stop_requested()]


def test_errors_and_second_requests():
    (found,) = {tuple(k) for k in simulation.run(2, after, timeout=20)}
    assert found[1:] == (True, False, False, True)


def test_a_vote_that_carried_it_goes_by_plan_again():
    """Only one call exchanges headers."""

    def headers(comm):
        seen = []
        original = comm.engine.headers
        comm.engine.headers = lambda *a: seen.append(1) or original(*a)
        for i in range(5):
            if i == 2 and comm.rank == 0:
                mpisign.request_stop()
            comm.majority_vote(np.ones(99))
        return len(seen)

    assert simulation.run(2, headers, timeout=20) == [2, 2]


SIGNALLED = """
import os, signal, numpy as np, mpisign
comm = mpisign.Communicator()
signal.signal(signal.SIGUSR2, lambda *a: print("before"))
mpisign.stop_on_signals(signal.SIGTERM, signal.SIGUSR2)
os.kill(os.getpid(), signal.SIGUSR2)
assert not mpisign.stop_requested()
comm.majority_vote(np.ones(3))
assert mpisign.stop_requested()
os.kill(os.getpid(), signal.SIGUSR2)
os.kill(os.getpid(), signal.SIGTERM)
print("asked twice", flush=True)
os.kill(os.getpid(), signal.SIGTERM)
"""


def test_signals():
    done = subprocess.run(
        [sys.executable, "-c", SIGNALLED], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "before\nasked twice\n", done.stderr
    assert done.returncode == -signal.SIGTERM


def stopped(output, n):
    assert output.count(" front ends stopped") == n, output


def test_front_ends_of_torch(tmp_path):
    pytest.importorskip("torch")
    many = [find("torchrun"), "--standalone", "--nproc-per-node", 3]
    env = {**with_tests(), "GLOO_SOCKET_IFNAME": "lo"}
    stopped(run([*many, RANKS / "stops.py", "torch"], env=env).stdout, 3)


@pytest.mark.horovod
def test_front_ends_of_horovod():
    pytest.importorskip("horovod.torch")
    many = [find("horovodrun"), "--gloo", "-np", 2, sys.executable]
    env = {**with_tests(), **ENV}
    stopped(run([*many, RANKS / "stops.py", "horovod"], env=env).stdout, 2)
