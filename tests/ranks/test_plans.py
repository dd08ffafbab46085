"""Plans: results bit for bit, ranks that call something else, memory that stays as it is."""

from __future__ import annotations

import gc
import resource
import tracemalloc

import numpy as np
import pytest
import reference as ref
import torch
from worlds import RANK, SIZE, WORLD, several

import mpisign
from mpisign.errors import CollectiveError, DisagreementError, NaNError

POLICIES = [
    {},
    {"zeros": "abstain", "nan": "abstain", "ties": "zero"},
    {"zeros": "random", "ties": "random", "seed": 7},
]


def values(length, rank, step):
    """Ties, zeros, -0.0 and, where it may abstain, NaN."""
    x = np.random.default_rng([length, rank, step]).integers(-2, 3, length).astype(np.float32)
    x[x == 2] = -0.0
    return x


def majority(xs, step=0, **policy):
    return ref.majority_vote(xs, step=step, **policy)


@pytest.fixture(scope="module")
def comm():
    return mpisign.Communicator(WORLD.Dup(), timeout=60.0)


@several
@pytest.mark.parametrize("algorithm", ["auto", "allgather", "alltoall", "hierarchical"])
@pytest.mark.parametrize(
    "length, policy",
    [*((n, policy) for n in (0, 9, 1001) for policy in POLICIES), (1_600_001, POLICIES[1])],
    ids=str,
)
def test_calls_of_a_plan_are_the_majority(comm, length, algorithm, policy):
    plan = comm.plan_majority_vote((length, "float32"), algorithm=algorithm, **policy)
    out = np.empty(length, np.float32)
    for step in range(3):
        xs = [values(length, r, step) for r in range(SIZE)]
        if policy.get("nan") == "abstain" and length:
            xs[0][length // 2] = np.nan
        expected = majority(xs, step, **policy)
        assert np.array_equal(plan(xs[RANK], step=step, out=out), expected)
        assert np.array_equal(plan.start(xs[RANK], step=step).wait(), expected)
        result = comm.majority_vote(xs[RANK], algorithm=algorithm, step=step, **policy)
        assert np.array_equal(result, expected)
    plan.free()


@several
def test_calls_in_flight_at_once_end_in_any_order(comm):
    length = 9001
    for step in range(20):
        handles = [
            comm.majority_vote_async(values(length, RANK, 100 * step + i), step=i) for i in range(5)
        ]
        order = np.random.default_rng([step, RANK]).permutation(5)
        results = {int(i): handles[i].wait() for i in order}
        for i in range(5):
            xs = [values(length, r, 100 * step + i) for r in range(SIZE)]
            assert np.array_equal(results[i], majority(xs, i))


LONG = np.ones(1_600_001, np.float32)  # of several chunks
ELSE = {
    "another length, kept": lambda comm: comm.majority_vote(np.ones(2000, np.float32)),
    "another length, new": lambda comm: comm.majority_vote(np.ones(64_123, np.float32)),
    "another policy": lambda comm: comm.majority_vote(np.ones(1000, np.float32), zeros="abstain"),
    "another step": lambda comm: comm.majority_vote(np.ones(1000, np.float32), step=77),
    "a tally": lambda comm: comm.tally(np.ones(1000, np.float32)),
    "a compressed mean": lambda comm: comm.compressed_mean(
        np.ones(1000, np.float32), mpisign.CompressedMeanState(1000, SIZE, RANK)
    ),
    "a long vote": lambda comm: comm.majority_vote(LONG),
}


@several
@pytest.mark.parametrize("other", ELSE, ids=str)
@pytest.mark.parametrize("odd", [0, SIZE - 1])
def test_a_rank_that_calls_something_else_is_named_by_all(comm, other, odd):
    x = np.ones(1000, np.float32)
    for _ in range(2):
        comm.majority_vote(x)
        comm.majority_vote(np.ones(2000, np.float32))
        comm.majority_vote(LONG)
    with pytest.raises(DisagreementError, match="ranks disagree on") as raised:
        if odd == RANK:
            ELSE[other](comm)
        else:
            comm.majority_vote(x)
    texts = WORLD.allgather(str(raised.value).partition(": ")[2])
    assert len(set(texts)) == 1 and f"rank {odd}" in texts[0]
    # Nothing is left behind: the next votes are right.
    for step in range(3):
        xs = [values(1000, r, step) for r in range(SIZE)]
        assert np.array_equal(comm.majority_vote(xs[RANK], step=step), majority(xs, step))


@several
def test_a_refusal_reaches_all_ranks(comm):
    x = np.ones(1000, np.float32)
    for _ in range(2):
        comm.majority_vote(x)
    with pytest.raises(CollectiveError, match="rank 0: ties must be"):
        comm.majority_vote(x, **({"ties": "never"} if RANK == 0 else {}))
    assert comm.majority_vote(x).all()


@several
@pytest.mark.parametrize("length", [1000, 1_600_001])
def test_a_nan_after_many_calls_without(comm, length):
    x = np.ones(length, np.float32)
    for _ in range(3):
        comm.majority_vote(x)
    bad = x.copy()
    if RANK == SIZE - 1:
        bad[[0, -1]] = np.nan
    with pytest.raises(NaNError, match=f"2 on rank {SIZE - 1}"):
        comm.majority_vote(bad)
    assert comm.majority_vote(x).all()


@several
def test_a_misfit_of_a_plan_is_an_error_on_all_ranks(comm):
    plan = comm.plan_majority_vote(np.ones(10, np.float32))
    with pytest.raises(CollectiveError, match="rank 0: x must fit its plan of 10 coordinates"):
        plan(np.ones(11 if RANK == 0 else 10, np.float32))
    with pytest.raises(CollectiveError, match="rank 0: x must be"):
        plan([1.0] if RANK == 0 else np.ones(10, np.float32))
    with pytest.raises(DisagreementError, match="length"):
        comm.plan_majority_vote((10 + RANK, "float32"))
    assert plan(np.ones(10, np.float32)).all()


@several
def test_weights_that_change_are_agreed_on_again(comm):
    xs = [np.full(100, 1.0 if r else -1.0, np.float32) for r in range(SIZE)]
    for step, heavy in enumerate([1, 1, 9, 9, 1, 9]):
        weights = [heavy if r == 0 else 1 for r in range(SIZE)]
        result = comm.majority_vote(xs[RANK], weight=weights[RANK], ties="zero")
        expected = np.sign(sum(w * x for w, x in zip(weights, xs, strict=True)))
        assert np.array_equal(result, expected), step


def grown(call, calls=500):
    """(bytes that Python holds more, page faults) of so many calls, after a few."""
    for _ in range(100):  # lists of exchanges reach their sizes
        call()
    gc.collect()
    tracemalloc.start()
    call()
    before, faults = tracemalloc.get_traced_memory()[0], resource.getrusage(resource.RUSAGE_SELF)
    for _ in range(calls):
        call()
    after, now = tracemalloc.get_traced_memory()[0], resource.getrusage(resource.RUSAGE_SELF)
    tracemalloc.stop()
    return after - before, now.ru_minflt - faults.ru_minflt


@several
@pytest.mark.parametrize("length", [1000, 300_000])
def test_a_plan_allocates_nothing_in_the_steady_state(comm, length):
    plan, x = comm.plan_majority_vote((length, "float32")), values(length, RANK, 0)
    out = np.empty_like(x)
    held, faults = grown(lambda: plan(x, out=out))
    assert held < 8 << 10 and faults < 32


@several
def test_a_step_allocates_nothing_in_the_steady_state(comm):
    torch.manual_seed(0)
    model = torch.nn.Linear(300, 100)
    optimizer = mpisign.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=1e-3),
        model.named_parameters(),
        compression="signum",
        comm=comm,
    )
    for p in model.parameters():
        p.grad = torch.empty_like(p)

    def step():
        for p in model.parameters():
            p.grad.fill_(1.0 + RANK)
        optimizer.step()

    held, faults = grown(step)
    assert held < 40 << 10 and faults < 128


@several
def test_a_hostile_preamble_does_no_harm(comm):
    """A rank that sends other bytes in a first round: headers follow, and the vote is right."""
    x = np.ones(1000, np.float32)
    for _ in range(2):
        comm.majority_vote(x)
    if RANK == 0:
        plan = next(p for plans in comm.engine.plans._plans.values() for p in plans)
        plan.terms = bytes(8)
    for step in range(3):
        xs = [values(1000, r, step) for r in range(SIZE)]
        assert np.array_equal(comm.majority_vote(xs[RANK], step=step), majority(xs, step))
