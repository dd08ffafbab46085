"""tally, mean_of_signs and weighted votes, over MPI and between threads."""

from __future__ import annotations

import functools
from fractions import Fraction

import numpy as np
import pytest
import reference as ref
import samples
import torch
from messages import small_messages
from worlds import ODD_ONE_OUT, RANK, SIZE, WORLD, WORLDS, on_ranks, several

import mpisign
from mpisign.engine import header
from mpisign.engine.preamble import PREAMBLE
from mpisign.errors import CollectiveError, DisagreementError, NaNError

LENGTHS = [0, 1, 9, 151, 4097]
COUNTING = ["auto", "allgather", "alltoall"]
VOTING = ["auto", "allgather", "alltoall", "hierarchical"]  # all exact: the same result

CHUNKED = WORLDS[-2 if SIZE == 1 else 0]  # 5 threads, or what the launcher started

#: What rank r of p weighs.
WEIGHTS = {
    "equal": lambda r, p: 3,
    "ramp": lambda r, p: r + 1,
    "one decides": lambda r, p: p if r == p - 1 else 1,
    "one counts for nothing": lambda r, p: 0 if r == 0 else 2,
    "nobody counts": lambda r, p: 0,
    "one differs": lambda r, p: 1 if r else 2,
    "binary floats": lambda r, p: 0.125 * (3 * r + 1),
    "decimal floats": lambda r, p: 0.1 * (r + 1),
    "far apart": lambda r, p: 10.0 ** (5 * r),
}


@functools.cache
def ballots(length, p):
    """Every rank's tensor, known to every rank."""
    return [samples.awkward(length, 100 + r) for r in range(p)]


@functools.cache
def signs(length, p, zeros):
    """Votes (p, length) of ``ballots``: +1, -1, 0 where a coordinate abstains."""
    xs = ballots(length, p)
    packed = [ref.pack(x, zeros, seed=9, step=4, rank=r) for r, x in enumerate(xs)]
    planes, masks = (np.stack(p) for p in zip(*packed, strict=True))
    return ref.votes_of(planes, masks, length)


def whole(weights):
    """Integers in the ratios of weights, or to 24 bits of the largest."""
    exact = [Fraction(w) for w in weights]
    common = np.lcm.reduce([f.denominator for f in exact], dtype=object)
    scaled = [int(f * common) for f in exact]
    common = np.gcd.reduce(scaled, dtype=object) or 1
    if sum(scaled) // common >= 1 << 31:
        return [round(f * (1 << 24) / max(exact)) for f in exact]
    return [s // common for s in scaled]


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of a few bytes, so that small tensors travel in 16."""
    small_messages(monkeypatch, 8)


def majority(length, weights, zeros, ties):
    """The sign of the weighted sum of ``signs``, in whole numbers."""
    total = (signs(length, len(weights), zeros) * np.array(whole(weights))[:, None]).sum(axis=0)
    if ties == "zero":
        return np.sign(total).astype(np.float32)
    coin = ref.random_bits(9, 4, ref.TIE_STREAM, 0, length) & (ties == "random")
    return np.where((total < 0) | ((total == 0) & coin), np.float32(-1), np.float32(1))


def check_votes(world, algorithm, cases):
    """Votes with all WEIGHTS; cases: (length, zeros, ties)."""
    p = SIZE if world == "mpi" else world
    votes = []
    for name, of in WEIGHTS.items():
        w = [of(r, p) for r in range(p)]
        votes += [(name, w, *case, majority(case[0], w, *case[1:])) for case in cases]

    def check(comm):
        for name, w, length, zeros, ties, expected in votes:
            how = {"zeros": zeros, "ties": ties, "weight": w[comm.rank], "seed": 9, "step": 4}
            x = ballots(length, p)[comm.rank]
            result = comm.majority_vote(x, algorithm=algorithm, **how)
            assert np.array_equal(result, expected), (name, length)

    on_ranks(world, check)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("algorithm", VOTING)
def test_weighted_votes_match_the_reference(world, algorithm):
    cases = [(0, "random", "random"), (9, "abstain", "zero"), (151, "random", "random")]
    check_votes(
        world, algorithm, [*cases, (4097, "abstain", "zero"), (4097, "positive", "positive")]
    )


@pytest.mark.parametrize("algorithm", VOTING)
def test_weighted_votes_of_tensors_that_travel_in_chunks(algorithm, small_chunks):
    check_votes(CHUNKED, algorithm, [(4097, "abstain", "zero"), (4097, "random", "random")])


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1, -0.5, "heavy", None])
def test_a_weight_that_is_none_is_refused_on_all_ranks(world, bad):
    def check(comm):
        last = comm.size - 1
        for vote in (comm.majority_vote, comm.tally):
            with pytest.raises(CollectiveError) as raised:
                vote(np.ones(9), weight=bad if comm.rank == last else 1)
            assert f"rank {last}: weight must be" in str(raised.value)
            assert f"got {bad!r}" in str(raised.value)
        assert (comm.majority_vote(np.ones(9), weight=2) == 1).all()
        return str(raised.value)

    assert len(set(on_ranks(world, check))) == 1


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("zeros", ["positive", "random", "abstain"])
def test_tallies_match_the_reference(world, zeros):
    p = SIZE if world == "mpi" else world
    all_votes = {length: signs(length, p, zeros) for length in LENGTHS}
    one = np.float32(1 / p)

    def check(comm):
        for length, votes in all_votes.items():
            x = ballots(length, p)[comm.rank]
            for algorithm in COUNTING:
                how = {"algorithm": algorithm, "zeros": zeros, "seed": 9, "step": 4}
                counted = comm.tally(x.reshape(1, -1), **how)
                assert counted.negative.dtype == counted.positive.dtype == np.int32
                assert np.array_equal(counted.negative, (votes < 0).sum(axis=0)[None])
                assert np.array_equal(counted.positive, (votes > 0).sum(axis=0)[None])
                mean = comm.mean_of_signs(x, **how)
                assert samples.same(mean, votes.sum(axis=0).astype(np.float32) * one)

    on_ranks(world, check)


@pytest.mark.parametrize("unit", [0, 1, 7, 70_001])  # the last: counts of over 16 bits
@pytest.mark.parametrize("zeros", ["positive", "abstain"])
def test_weighted_tallies_of_tensors_that_travel_in_chunks(unit, zeros, small_chunks):
    p = SIZE if CHUNKED == "mpi" else CHUNKED
    votes = signs(4097, p, zeros)
    w = np.array([unit * (r + 1) for r in range(p)])

    def check(comm):
        x = ballots(4097, p)[comm.rank]
        for algorithm in COUNTING:
            counted = comm.tally(x, algorithm=algorithm, zeros=zeros, weight=w[comm.rank])
            assert np.array_equal(counted.negative, w @ (votes < 0))
            assert np.array_equal(counted.positive, w @ (votes > 0))

    on_ranks(CHUNKED, check)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_torch_in_torch_out(dtype):
    xs = [torch.from_numpy(x.copy()).to(dtype).reshape(3, -1) for x in ballots(999, SIZE)]
    mine = xs[RANK].t().requires_grad_()
    counted = mpisign.tally(mine, zeros="abstain")
    assert counted.negative.dtype == torch.int32 and counted.negative.shape == mine.shape
    assert torch.equal(counted.negative.t(), sum((x < 0).int() for x in xs))
    assert torch.equal(counted.positive.t(), sum((x > 0).int() for x in xs))
    mean = mpisign.mean_of_signs(mine, zeros="abstain")
    assert mean.dtype == torch.float32
    assert torch.allclose(mean.t(), sum(torch.sign(x.detach().float()) for x in xs) / SIZE)


def test_nan_abstains_alone():
    x = np.array([1.0, -1.0, np.nan, np.nan])
    if RANK == 0:
        x[2] = -3.0
    counted = mpisign.tally(x, nan="abstain")
    assert counted.negative.tolist() == [0, SIZE, 1, 0]
    assert counted.positive.tolist() == [SIZE, 0, 0, 0]


@pytest.mark.parametrize("message", [8, 1 << 15])
def test_nan_on_one_rank_is_an_error_on_all(message, monkeypatch):
    small_messages(monkeypatch, message)  # NaNs are counted before, or while data moves
    x = np.ones(4097)
    if RANK == SIZE - 1:
        x[-5:] = np.nan
    with pytest.raises(NaNError, match=f"tally: x must hold no NaN .* got 5 on rank {SIZE - 1}"):
        mpisign.tally(x)
    with pytest.raises(NaNError, match="mean_of_signs: x must hold no NaN"):
        mpisign.mean_of_signs(x)
    assert (mpisign.tally(np.ones(8)).positive == SIZE).all()


def test_tallies_in_flight_and_their_memory():
    xs = ballots(4097, SIZE)
    mine = xs[RANK].copy()
    out = np.empty(4097, np.int32), np.empty(4097, np.int32)
    first = mpisign.tally_async(mine, zeros="abstain", out=out)
    mine.fill(np.nan)
    second = mpisign.tally_async(np.ones(3))
    assert second.wait().positive.tolist() == [SIZE] * 3
    counted = first.wait()
    assert counted.negative is out[0] and counted.positive is out[1]
    assert np.array_equal(out[0], (signs(4097, SIZE, "abstain") < 0).sum(axis=0))


@pytest.mark.parametrize("function", ["tally", "mean_of_signs"])
@pytest.mark.parametrize(
    "bad, error",
    [
        ({"x": [1.0]}, "x must be a NumPy array, .* got list"),
        ({"x": np.ones(9, np.int64)}, "x must have dtype float32, .* got int64"),
        ({"algorithm": "hierarchical"}, "algorithm must be one of 'auto', .* got 'hierarchical'"),
        ({"zeros": "up"}, "zeros must be one of"),
        ({"nan": "zero"}, "nan must be one of"),
        ({"seed": -1}, "seed must be in"),
        ({"step": 0.5}, "step must be in"),
        ({"out": np.ones(9)}, "out must be "),
        ({"out": (np.ones(9, np.int64), np.ones(9, np.int32))}, "out must be "),
    ],
)
def test_bad_arguments_of_one_rank_are_an_error_on_all(function, bad, error):
    arguments = {"x": np.ones(9), **(bad if RANK == SIZE - 1 else {})}
    with pytest.raises(CollectiveError, match=f"{function}: cannot .* rank {SIZE - 1}: {error}"):
        getattr(mpisign, function)(**arguments)


@pytest.mark.parametrize("bad", [0.5, 1.0, 1 << 31])
def test_a_tally_counts_in_whole_numbers(bad):
    with pytest.raises(CollectiveError, match=r"weight must be an integer in \[0, 2\*\*31\), got"):
        mpisign.tally(np.ones(9), weight=bad)


def test_the_sum_of_all_weights_fits_int32():
    most = ((1 << 31) - 1) // SIZE
    x = ballots(9, SIZE)[RANK]
    counted = mpisign.tally(x, weight=most)
    assert (counted.negative + counted.positive == most * SIZE).all()
    if SIZE > 1:
        with pytest.raises(CollectiveError, match=r"sum to less than 2\*\*31, got 21474836"):
            mpisign.tally(x, weight=most + (RANK == 0) * SIZE)
    assert mpisign.tally(x, weight=most).negative.dtype == np.int32


@several
@pytest.mark.parametrize("name, odd, common", ODD_ONE_OUT)
def test_ranks_that_disagree_all_raise(name, odd, common):
    arguments = {"x": np.ones(8), **common, **(odd if RANK == SIZE - 1 else {})}
    with pytest.raises(DisagreementError, match=rf"ranks disagree on {name} .*rank {SIZE - 1}: "):
        mpisign.tally(**arguments)


@several
def test_a_vote_where_others_tally():
    with pytest.raises(DisagreementError, match=r"ranks disagree on operation .*rank 0: tally"):
        mpisign.tally(np.ones(8)) if RANK == 0 else mpisign.majority_vote(np.ones(8))


def test_stats_count_what_the_collective_moves():
    length, stats = 8000, mpisign.stats()
    for algorithm in ("allgather", "alltoall"):
        for masks, zeros in ((1, "positive"), (2, "abstain")):
            WORLD.Barrier()
            stats.reset()
            mpisign.tally(np.ones(length), algorithm=algorithm, zeros=zeros)
            expected = (header.NBYTES + PREAMBLE) * (SIZE - 1)
            if algorithm == "allgather":
                expected += masks * length // 8 * (SIZE - 1)
            else:
                bits = SIZE.bit_length()
                widest = -(-1000 // SIZE)  # of a shard
                expected += masks * (1 + bits) * widest * (SIZE - 1)
            assert stats.as_dict()["exchange"]["received"] == expected
