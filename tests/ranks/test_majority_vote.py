"""majority_vote over MPI. Runs at one rank under pytest, at several under tests/test_ranks.py."""

from __future__ import annotations

import numpy as np
import pytest
import reference as ref
import samples
import torch
from worlds import MPI, ODD_ONE_OUT, RANK, SIZE, WORLD, same_on_all_ranks, several

import mpisign
from mpisign.engine import header
from mpisign.engine.preamble import PREAMBLE
from mpisign.errors import BrokenError, CollectiveError, DisagreementError, NaNError

LENGTHS = [0, 9, 151, 70_001]


def ballots(length, dtype=np.float32, comm=WORLD):
    """Every rank's tensor, known to every rank."""
    return [samples.awkward(length, 100 + r, dtype) for r in range(comm.size)]


@pytest.mark.parametrize("algorithm", ["auto", "allgather", "alltoall"])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("zeros", ["positive", "random", "abstain"])
@pytest.mark.parametrize("ties", ["positive", "random", "zero"])
def test_every_policy_matches_the_reference(algorithm, length, zeros, ties):
    xs = ballots(length)
    expected = ref.majority_vote(xs, zeros, ties, seed=9, step=4)

    result = mpisign.majority_vote(
        xs[RANK], WORLD, algorithm=algorithm, zeros=zeros, ties=ties, seed=9, step=4
    )
    assert np.array_equal(result, expected)
    assert same_on_all_ranks(result)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_torch_in_torch_out(dtype):
    xs = [torch.from_numpy(x).to(dtype).reshape(3, -1) for x in ballots(999)]
    result = mpisign.majority_vote(xs[RANK].t(), zeros="abstain", ties="zero")
    assert result.dtype == dtype and result.shape == xs[0].t().shape
    expected = torch.sign(sum(torch.sign(x.double()) for x in xs))
    assert torch.equal(result.t().double(), expected)


def test_nan_abstains_alone():
    xs = [np.array([1.0, -1.0, np.nan, np.nan]) for _ in range(SIZE)]
    xs[0][2] = -3.0
    result = mpisign.majority_vote(xs[RANK], nan="abstain", ties="zero")
    assert result.tolist() == [1.0, -1.0, -1.0, 0.0]


def test_out_is_written_and_returned():
    xs = ballots(65)
    out = np.empty(65, dtype=np.float32)
    assert mpisign.majority_vote(xs[RANK], zeros="abstain", ties="zero", out=out) is out
    assert np.array_equal(out, ref.vote(xs))


def test_votes_in_flight_end_in_any_order():
    # Ranks finish and ask in different orders; each vote must still meet its own peers.
    tensors = [ballots(n) for n in (1000, 1, 50_000, 33, 8)]
    handles = [
        mpisign.majority_vote_async(
            xs[RANK], zeros="abstain", ties="zero", algorithm=("allgather", "alltoall")[i % 2]
        )
        for i, xs in enumerate(tensors)
    ]
    between = mpisign.majority_vote(np.ones(5), ties="zero")
    order = np.random.default_rng(RANK).permutation(len(handles))
    for i in order:
        if RANK % 2:
            while not handles[i].done():
                pass
        assert np.array_equal(handles[i].wait(), ref.vote(tensors[i]))
        assert handles[i].done()
    assert (between == 1).all()


def test_the_callers_memory_is_free_after_the_call():
    xs = ballots(4097)
    mine = xs[RANK].copy()
    handle = mpisign.majority_vote_async(mine, zeros="abstain", ties="zero")
    mine.fill(np.nan)
    assert np.array_equal(handle.wait(), ref.vote(xs))


def test_subgroups_vote_for_themselves():
    comm = WORLD.Split(RANK % 2, key=-RANK)
    xs = [np.full(100, 1.0 if r % 3 else -1.0) for r in range(comm.size)]
    for _ in range(3):
        result = mpisign.majority_vote(xs[comm.rank], comm, ties="zero")
        assert np.array_equal(result, ref.vote(xs))
    comm.Free()


def test_messages_of_the_user_do_not_mix_with_ours():
    handle = mpisign.majority_vote_async(np.ones(9), ties="zero")
    theirs = np.empty(SIZE, dtype=np.int64)
    WORLD.Allgather(np.array([RANK]), theirs)
    assert theirs.tolist() == list(range(SIZE))
    assert (handle.wait() == 1).all()


def test_a_communicator_freed_with_a_vote_in_flight_ends_it_first():
    comm = WORLD.Dup()
    xs = ballots(4097)
    handle = mpisign.majority_vote_async(xs[RANK], comm, zeros="abstain", ties="zero")
    comm.Free()
    assert np.array_equal(handle.wait(), ref.vote(xs))


def test_stats_count_what_the_collective_moves():
    length, planes_up, planes_down = 8000, 1, 2
    stats = mpisign.stats()
    for algorithm in ("allgather", "alltoall"):
        for first in (True, False):  # headers, then preambles alone
            WORLD.Barrier()
            stats.reset()
            mpisign.majority_vote(np.ones(length), ties="zero", algorithm=algorithm)
            expected = (first * header.NBYTES + PREAMBLE) * (SIZE - 1)
            if algorithm == "allgather":
                expected += planes_up * length // 8 * (SIZE - 1)
            else:
                widest = -(-length // 8 // SIZE)  # of a shard
                expected += (planes_up + planes_down) * widest * (SIZE - 1)
            assert stats.as_dict()["exchange"]["received"] == expected
    assert stats.as_dict()["vote"]["calls"] == 1
    assert "exchange" in stats.table()


@several
@pytest.mark.parametrize(
    "name, odd, common",
    [
        *ODD_ONE_OUT,
        ("ties", {"ties": "zero"}, {"ties": "random"}),
        ("nan", {"nan": "abstain"}, {"nan": "raise"}),
        ("step", {"step": 12}, {"step": 13}),
    ],
)
def test_ranks_that_disagree_all_raise_the_same_error(name, odd, common):
    arguments = {"x": np.ones(8), **common}
    if RANK == SIZE - 1:
        arguments.update(odd)
    with pytest.raises(DisagreementError, match=f"ranks disagree on {name}") as raised:
        mpisign.majority_vote(**arguments)
    assert f"rank {SIZE - 1}: " in str(raised.value)
    assert same_on_all_ranks(np.frombuffer(str(raised.value).encode(), np.uint8))
    assert (mpisign.majority_vote(np.ones(8)) == 1).all()  # and the next vote works


def test_bad_arguments_of_one_rank_are_an_error_on_all():
    x = [1.0, 2.0] if RANK == 0 else np.ones(2)
    with pytest.raises(CollectiveError, match="rank 0: x must be a NumPy array, .* got list"):
        mpisign.majority_vote(x)
    bad = {"algorithm": "gossip"} if RANK == SIZE - 1 else {}
    with pytest.raises(CollectiveError, match=f"rank {SIZE - 1}: algorithm must be one of"):
        mpisign.majority_vote(np.ones(2), **bad)
    assert (mpisign.majority_vote(np.ones(8)) == 1).all()


def test_nan_on_one_rank_is_an_error_on_all():
    x = np.ones(100)
    if RANK == SIZE - 1:
        x[:5] = np.nan
    with pytest.raises(NaNError, match=f"got 5 on rank {SIZE - 1}"):
        mpisign.majority_vote(x)
    assert (mpisign.majority_vote(np.ones(8)) == 1).all()


@several
def test_a_replica_that_diverged_is_found_by_the_next_header():
    from mpisign.functions import engine_of

    comm = WORLD.Dup()
    ch = engine_of("test", comm)
    ch.replicas.every = 1
    mpisign.majority_vote(np.ones(64), comm)
    if RANK == SIZE - 1:
        ch.replicas.add(0, np.ones(3))  # of the same vote, but another result
    with pytest.raises(CollectiveError, match=f"replicas differ.* against rank {SIZE - 1}"):
        mpisign.majority_vote(np.ones(64), comm)
    comm.Free()


@pytest.mark.parametrize("algorithm", ["allgather", "alltoall"])
@several
def test_padding_that_is_not_zero_names_its_rank_everywhere(algorithm, monkeypatch):
    from mpisign.collectives.vote_task import ArrayTask

    read = ArrayTask.read

    def dirty(self, a, b, out):
        read(self, a, b, out)
        out[..., -1] |= 0x80

    if RANK == 0:
        monkeypatch.setattr(ArrayTask, "read", dirty)
    comm = WORLD.Dup()
    with pytest.raises(CollectiveError, match="rank 0 sent planes with padding not 0"):
        mpisign.majority_vote(np.ones(9), comm, algorithm=algorithm)
    with pytest.raises(BrokenError, match="broke off earlier: .* padding not 0"):
        mpisign.majority_vote(np.ones(9), comm)


@pytest.mark.parametrize("comm", [42, MPI.COMM_NULL, object()])
def test_what_is_no_communicator(comm):
    with pytest.raises(TypeError, match="comm must be an mpi4py intracommunicator"):
        mpisign.majority_vote(np.ones(3), comm)
