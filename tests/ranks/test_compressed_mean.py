"""compressed_mean against its equations in NumPy, over MPI and between threads."""

from __future__ import annotations

import numpy as np
import pytest
import reference as ref
import samples
import torch
from worlds import RANK, SIZE, WORLD, WORLDS, on_ranks, several

import mpisign
from mpisign import CompressedMeanState
from mpisign.collectives import compressed_mean as module
from mpisign.engine import header
from mpisign.errors import BrokenError, CollectiveError, DisagreementError, NaNError


def gradients(length, p, step):
    """Normal numbers of every rank's own scale, with zeros among them."""
    rng = np.random.default_rng([7, length, step])
    xs = rng.standard_normal((p, length)).astype(np.float32) * 4.0 ** np.arange(p)[:, None]
    xs[rng.random((p, length)) < 0.2] = 0
    return xs.astype(np.float32)


def expected_steps(length, p, block, zeros, steps=3):
    """Reference results and states of some steps: (xs, result, residuals, owners) each."""
    reference, history = ref.CompressedMean(length, p, block), []
    for step in range(steps):
        xs = gradients(length, p, step)
        result = reference.step(xs, zeros, 5, step)
        history.append(
            (xs, result, [e.copy() for e in reference.residuals], reference.owners.copy())
        )
    return history


def check_steps(world, length, block, zeros):
    p = SIZE if world == "mpi" else world
    steps, cuts = expected_steps(length, p, block, zeros), ref.shard_bounds(length, p, block)

    def check(comm):
        state = CompressedMeanState(length, comm.size, comm.rank, block)
        mine = slice(cuts[comm.rank], cuts[comm.rank + 1])
        for step, (xs, result, residuals, owners) in enumerate(steps):
            got = comm.compressed_mean(xs[comm.rank], state, zeros=zeros, seed=5, step=step)
            assert samples.same(got, result), step
            assert samples.same(state.residual, residuals[comm.rank]), step
            assert samples.same(state.owner_residual, owners[mine]), step

    on_ranks(world, check)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("zeros", ["positive", "random", "abstain"])
@pytest.mark.parametrize("length, block", [(1, None), (255, 256), (1001, None), (3333, 256)])
def test_every_step_matches_the_equations(world, zeros, length, block):
    check_steps(world, length, block, zeros)


@pytest.mark.parametrize("zeros", ["random", "abstain"])
@pytest.mark.parametrize("length, block", [(20_001, 256), (20_000, 1024), (4097, None)])
def test_every_step_of_tensors_that_travel_in_chunks(zeros, length, block, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", 100)
    check_steps(WORLDS[min(2, len(WORLDS) - 1)], length, block, zeros)


def test_no_coordinates():
    state = CompressedMeanState(0, SIZE, RANK)
    assert mpisign.compressed_mean(np.empty((0, 3)), state).shape == (0, 3)


@pytest.mark.parametrize("block", [None, 256])
def test_what_is_left_out_comes_later(block):
    length, steps = 1000, 100
    xs = np.random.default_rng(3).uniform(-1, 1, (SIZE, length)) + np.arange(SIZE)[:, None] / SIZE
    true = xs.mean(axis=0)
    state = CompressedMeanState(length, SIZE, RANK, block)
    total, errors = np.zeros(length), []
    for step in range(1, steps + 1):
        total += mpisign.compressed_mean(xs[RANK], state)
        errors.append(np.abs(total / step - true).max())
    assert errors[99] < 0.75 * errors[24] and errors[99] < 0.4 * errors[0]
    # Exactly what the residuals hold is missing.
    held = np.empty((SIZE, length), np.float32)
    WORLD.Allgather(state.residual, held)
    owners = np.concatenate(WORLD.allgather(state.owner_residual))
    assert np.allclose(total + held.mean(axis=0) + owners, steps * true, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_torch_in_torch_out(dtype):
    xs = [torch.from_numpy(x).to(dtype).reshape(30, 40) for x in gradients(1200, SIZE, 0)]
    mine = xs[RANK].t().requires_grad_()
    result = mpisign.compressed_mean(mine, CompressedMeanState(1200, SIZE, RANK, 256), step=0)
    flat = [x.t().reshape(-1).detach().float().numpy() for x in xs]
    expected = ref.CompressedMean(1200, SIZE, 256).step(flat, "random", 0, 0)
    assert result.dtype == torch.float32 and result.shape == mine.shape
    assert samples.same(result.reshape(-1).numpy(), expected)


def test_out_may_be_x():
    x = gradients(777, SIZE, 0)[RANK].reshape(7, 111)
    expected = mpisign.compressed_mean(x, CompressedMeanState(777, SIZE, RANK, 256), step=0)
    state = CompressedMeanState(777, SIZE, RANK, 256)
    assert mpisign.compressed_mean(x, state, step=0, out=x) is x
    assert samples.same(x, expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e39])  # the last is infinite in float32
@pytest.mark.parametrize("block", [None, 256])
def test_what_is_not_finite_on_one_rank_is_an_error_on_all_and_leaves_no_trace(bad, block):
    state = CompressedMeanState(999, SIZE, RANK, block)
    x = gradients(999, SIZE, 0)[RANK].astype(np.float64)
    mpisign.compressed_mean(x, state)
    before = state.state_dict()
    spoilt = x.copy()
    if RANK == SIZE - 1:
        spoilt[[3, 800]] = bad
    with pytest.raises(NaNError, match=f"x plus residual must be finite .* 2 on rank {SIZE - 1}"):
        mpisign.compressed_mean(spoilt, state)
    assert samples.same(state.residual, before["residual"])
    assert samples.same(state.owner_residual, before["owner_residual"])
    again = CompressedMeanState(999, SIZE, RANK, block)
    again.load_state_dict(before)
    a, b = (mpisign.compressed_mean(x, s, step=8) for s in (state, again))
    assert samples.same(a, b)


def test_what_is_not_finite_abstains():
    xs = gradients(999, SIZE, 0)
    xs[0][5], xs[-1][[5, 700]] = np.inf, np.nan
    state, reference = CompressedMeanState(999, SIZE, RANK, 256), ref.CompressedMean(999, SIZE, 256)
    for step in range(2):
        result = mpisign.compressed_mean(xs[RANK], state, nan="abstain", seed=1, step=step)
        assert samples.same(result, reference.step(xs, "random", 1, step))
        assert samples.same(state.residual, reference.residuals[RANK])
    assert np.isfinite(result).all() and np.isfinite(state.residual).all()


def test_a_mean_that_leaves_float32_is_no_result():
    comm = WORLD.Dup()
    state = CompressedMeanState(1, SIZE, RANK)
    if len(state.owner_residual):
        state.owner_residual[:] = 3e38
    before = state.owner_residual.copy()
    with pytest.raises((OverflowError, CollectiveError), match="1 coordinates of the mean left"):
        mpisign.compressed_mean(np.array([1e38]), state, comm)
    assert state.residual == 0 and samples.same(state.owner_residual, before)
    with pytest.raises(BrokenError):
        mpisign.compressed_mean(np.array([1.0]), state, comm)
    comm.Free()


def test_states_are_saved_and_outlive_a_change_of_size():
    xs = gradients(999, SIZE, 0)
    state = CompressedMeanState(999, SIZE, RANK, 256)
    mpisign.compressed_mean(xs[RANK], state)
    saved = {
        k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v
        for k, v in state.state_dict().items()
    }
    same = CompressedMeanState(999, SIZE, RANK, 256)
    same.load_state_dict(saved)
    assert samples.same(same.residual, state.residual)
    assert samples.same(same.owner_residual, state.owner_residual)
    for other in (
        CompressedMeanState(999, SIZE + 1, RANK, 256),
        CompressedMeanState(999, SIZE, RANK, 512),
        CompressedMeanState(999, SIZE + 1, RANK + 1, 256),
    ):
        other.load_state_dict(saved)
        assert samples.same(other.residual, state.residual)
        assert other.owner_residual.size == other.shard.b - other.shard.a
        assert not other.owner_residual.any()
    with pytest.raises(ValueError, match="residual must have 998 coordinates, got 999"):
        CompressedMeanState(998, SIZE, RANK, 256).load_state_dict(saved)
    saved["residual"][3] = float("nan")
    with pytest.raises(ValueError, match="load_state_dict: residual must be finite"):
        same.load_state_dict(saved)


@pytest.mark.parametrize(
    "arguments, error",
    [
        ({"length": -1}, "length must be an integer from 0, got -1"),
        ({"length": 2.0}, "length must be an integer from 0, got 2.0"),
        ({"size": 0}, "size must be an integer from 1, got 0"),
        ({"rank": 1}, "rank must be below size 1, got 1"),
        ({"block": 100}, "block must be a positive multiple of 256 or None, got 100"),
        ({"block": 0}, "block must be a positive multiple of 256 or None, got 0"),
    ],
)
def test_what_is_no_state(arguments, error):
    with pytest.raises(ValueError, match=f"CompressedMeanState: {error}"):
        CompressedMeanState(**{"length": 9, **arguments})


@pytest.mark.parametrize(
    "bad, error",
    [
        ({"x": [1.0]}, "x must be a NumPy array, .* got list"),
        ({"x": np.ones(8)}, "state must have 8 coordinates as x has, got 9"),
        ({"state": np.zeros(9)}, "state must be a CompressedMeanState, got ndarray"),
        ({"state": CompressedMeanState(9, SIZE + 1, RANK)}, "state must be that of rank"),
        ({"zeros": "up"}, "zeros must be one of"),
        ({"nan": "zero"}, "nan must be one of"),
        ({"seed": -1}, "seed must be in"),
        ({"out": np.ones(9)}, r"out must be C-contiguous float32 \(9,\), got float64"),
    ],
)
def test_bad_arguments_of_one_rank_are_an_error_on_all(bad, error):
    state = CompressedMeanState(9, SIZE, RANK)
    last = RANK == SIZE - 1
    arguments = {"x": np.ones(9), "state": state, **(bad if last else {})}
    with pytest.raises(CollectiveError, match=f"compressed_mean: .* rank {SIZE - 1}: {error}"):
        mpisign.compressed_mean(**arguments)
    assert not state.residual.any()
    result = mpisign.compressed_mean(np.ones(9), state)
    assert np.array_equal(result, np.ones(9, np.float32))


@several
def test_ranks_that_disagree_all_raise():
    block = 256 if RANK == SIZE - 1 else 512
    with pytest.raises(DisagreementError, match=f"blocks of the states .* rank {SIZE - 1}"):
        mpisign.compressed_mean(np.ones(9), CompressedMeanState(9, SIZE, RANK, block))


@several
@pytest.mark.parametrize("what", ["scale that is no number from 0", "planes with padding not 0"])
def test_what_is_no_scaled_sign_names_its_rank_everywhere(what, monkeypatch):
    from mpisign import planes

    pack = planes.pack_error_feedback

    def spoilt(x, residual, *, out, scales, **how):
        result = pack(x, residual, out=out, scales=scales, **how)
        if "scale" in what:
            scales[:] = np.nan
        else:
            out[..., -1] |= 0x80
        return result

    if RANK == 0:
        monkeypatch.setattr(planes, "pack_error_feedback", spoilt)
    comm = WORLD.Dup()
    with pytest.raises(CollectiveError, match=f"rank 0 sent (a )?{what}"):
        mpisign.compressed_mean(np.ones(9), CompressedMeanState(9, SIZE, RANK), comm)
    comm.Free()


@pytest.mark.parametrize("block", [None, 256])
@pytest.mark.parametrize("zeros", ["positive", "abstain"])
def test_stats_count_what_the_collective_moves(block, zeros):
    length, stats = 8001, mpisign.stats()
    cuts = ref.shard_bounds(length, SIZE, block)
    nbytes = [(b + 7) // 8 - a // 8 for a, b in zip(cuts, cuts[1:], strict=False)]
    scales = [-(-(b - a) // (block or length)) for a, b in zip(cuts, cuts[1:], strict=False)]
    shards = [
        (2 if zeros == "abstain" else 1) * n + 4 * s for n, s in zip(nbytes, scales, strict=True)
    ]
    state = CompressedMeanState(length, SIZE, RANK, block)
    WORLD.Barrier()
    stats.reset()
    mpisign.compressed_mean(np.ones(length), state, zeros=zeros)
    counts = 8
    expected = (header.NBYTES + shards[RANK] + counts) * (SIZE - 1) + sum(shards) - shards[RANK]
    assert stats.as_dict()["exchange"]["received"] == expected
