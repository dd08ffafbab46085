"""Majorities and tallies: weights, groups, masks, any alignment, every instruction set."""

from __future__ import annotations

from fractions import Fraction
from functools import cache

import numpy as np
import pytest
import reference as ref
from fused_arrays import isa  # noqa: F401
from hypothesis import given, settings
from hypothesis import strategies as st

import mpisign
from mpisign import planes
from mpisign.planes.weights import integer_weights

KEYS = {"seed": 2**40 + 7, "step": 2**33 + 11}
TILE = 8192  # bytes: VOTE_TILE of kernels/blocks.c
ROWS = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 100]


def ballots(n, length, seed, masked):
    """(signs, masks or None, the stack as the kernels take it)."""
    rng = np.random.default_rng([seed, n, length])
    signs = np.stack([ref.bits_to_plane(b) for b in rng.random((n, length)) < 0.5])
    if not masked:
        return signs, None, signs
    masks = np.stack([ref.bits_to_plane(b) for b in rng.random((n, length)) < 0.6])
    return signs, masks, np.stack([signs, masks], axis=1)


def expected(signs, masks, ties, **options):
    sign, mask = ref.majority(signs, masks, ties=ties, **options)
    return np.stack([sign & mask, mask]) if ties == "zero" else sign


@cache
def expected_of(n, length, draw, masked, **options):
    """Of ``ballots``; the same for every instruction set."""
    signs, masks, _ = ballots(n, length, draw, masked)
    return expected(signs, masks, length=length, **options)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("ties", ["positive", "random", "zero"])
@pytest.mark.parametrize("masked", [False, True])
def test_majority_at_every_boundary(ties, masked):
    for n in ROWS:
        for length in (1, 511, 2048, 2049, 8 * TILE + 5) if n < 5 or n > 14 else (1, 2049):
            _, _, stack = ballots(n, length, 1, masked)
            for offset in (8 * 5, 8 * 16):
                options = {"ties": ties, "offset": offset, **KEYS}
                result = mpisign.majority(stack, length=length, **options)
                wanted = expected_of(n, length, 1, masked, **options)
                assert np.array_equal(result, wanted), (n, length)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("ties", ["random", "zero"])
def test_large_results_are_streamed_to_any_address(ties):
    length = 8 * ((1 << 19) + 37) - 3
    for n in (2, 3, 18) if ties == "zero" else (2,):
        _, _, stack = ballots(n, length, 2, False)
        wanted = expected_of(n, length, 2, False, ties=ties, **KEYS)
        for start in (1, 16, "line"):
            room = np.empty(wanted.nbytes + 64, dtype=np.uint8)
            start = -room.ctypes.data % 64 if start == "line" else start
            room[start + wanted.nbytes :] = 0xA5
            out = room[start:][: wanted.nbytes].reshape(wanted.shape)
            mpisign.majority(stack, ties=ties, length=length, out=out, **KEYS)
            assert np.array_equal(out, wanted)
            assert (room[start + wanted.nbytes :] == 0xA5).all()


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "n, group", [(3, 3), (6, 3), (9, 3), (15, 5), (21, 7), (48, 3), (51, 3), (8, 2), (90, 9)]
)
def test_groups_vote_first(n, group, masked):
    for length in (65, 8 * TILE + 5):
        _, _, stack = ballots(n, length, 3, masked)
        for ties in ("random", "zero"):
            options = {"ties": ties, "group": group, **KEYS}
            wanted = expected_of(n, length, 3, masked, **options)
            result = mpisign.majority(stack, length=length, **options)
            assert np.array_equal(result, wanted), (length, ties)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("weights", [[1, 1, 1], [0, 0], [5, 0, 3, 2], range(40)])
def test_weighted_majority_and_tally(weights, masked):
    weights = list(weights)
    for length in (1, 777, 8 * TILE + 3):
        signs, masks, stack = ballots(len(weights), length, 4, masked)
        for ties in ("positive", "random", "zero"):
            options = {"ties": ties, "length": length, "weights": weights, **KEYS}
            wanted = expected(signs, masks, **options)
            assert np.array_equal(mpisign.majority(stack, **options), wanted)
        counts = planes.tally(stack, weights=weights, length=length)
        wanted = ref.tally(signs, masks, weights, length, max(1, sum(weights).bit_length()))
        assert np.array_equal(counts, np.stack(wanted) if masked else wanted[0])


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("masked", [False, True])
def test_tally_counts(masked):
    for n in ROWS:
        for length in (1, 2047, 8 * TILE + 9):
            signs, masks, stack = ballots(n, length, 5, masked)
            counts = planes.tally(stack, length=length)
            assert counts.shape == (2,) * masked + (n.bit_length(), (length + 7) // 8)
            wanted = ref.tally(signs, masks, None, length, n.bit_length())
            assert np.array_equal(counts, np.stack(wanted) if masked else wanted[0])
            assert planes.padding_is_zero(counts, length).all()


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("masked", [False, True])
def test_more_rows_than_a_tile_is_long_for(masked):
    length = 8 * TILE // 2 + 17
    _, _, stack = ballots(300, length, 6, masked)
    for ties in ("random", "zero"):
        wanted = expected_of(300, length, 6, masked, ties=ties, **KEYS)
        assert np.array_equal(mpisign.majority(stack, ties=ties, length=length, **KEYS), wanted)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("weights", [[3, 2**30], [2**31 - 1], [2**30, 2**29, 2**28, 7]])
def test_the_largest_weights(weights, masked):
    signs, masks, stack = ballots(len(weights), 4099, 8, masked)
    signs[:, :8] = 0xFF
    stack = np.stack([signs, masks], axis=1) if masked else signs
    options = {"ties": "zero", "length": 4099, "weights": weights}
    assert np.array_equal(mpisign.majority(stack, **options), expected(signs, masks, **options))


@pytest.mark.usefixtures("isa")
def test_ties_are_counted_alike_at_any_address_and_offset():
    length = 8 * ((1 << 19) + 100) - 5
    _, masks, stack = ballots(2, length, 9, True)
    stack[:, 1] |= masks[0]  # one side always votes
    for n, ties in ((2, "zero"), (2, "random"), (1, "zero")):
        counts = set()
        for start, offset in ((0, 0), (1, 8), (16, 120), (17, 8 * 15)):
            room = np.empty((1 + (ties == "zero")) * stack.shape[2] + 64, dtype=np.uint8)
            out = room[start:][: room.size - 64]
            out = out.reshape(2, -1) if ties == "zero" else out
            counts.add(
                planes.majority_census(stack[:n], length=length, ties=ties, offset=offset, out=out)[
                    1
                ]
            )
        votes = ref.votes_of(stack[:n, 0], stack[:n, 1], length)
        assert counts == {int((votes.sum(axis=0) == 0).sum())}


def test_padding_from_a_hostile_rank_is_not_counted():
    stack = np.full((3, 2), 0xFF, dtype=np.uint8)
    assert mpisign.majority(stack, length=9).tolist() == [0xFF, 1]
    assert planes.tally(stack, length=9).tolist() == [[0xFF, 1], [0xFF, 1]]


def test_more_rows_than_any_tile_holds():
    signs, masks, stack = ballots(4096, 301, 6, True)
    options = {"ties": "zero", "length": 301}
    assert np.array_equal(mpisign.majority(stack, **options), expected(signs, masks, **options))


def test_threads_change_nothing(monkeypatch):
    results = []
    for threads in ("1", "2", "3"):
        monkeypatch.setattr(planes.vote.threads, "for_work", lambda _, t=int(threads): t)
        for n in (4, 33):
            _, _, stack = ballots(n, 1_500_001, 7, False)
            results.append((n, *planes.majority_census(stack, length=1_500_001, **KEYS)))
            results.append((n, planes.tally(stack, length=1_500_001), 0))
    for n, result, tied in results[4:]:
        assert any(
            n == m and tied == t and result.shape == r.shape and np.array_equal(result, r)
            for m, r, t in results[:4]
        )


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_any_stack(data):
    n = data.draw(st.integers(1, 40))
    length = data.draw(st.integers(1, 300))
    masked = data.draw(st.booleans())
    ties = data.draw(st.sampled_from(["positive", "random", "zero"]))
    weights = data.draw(st.none() | st.lists(st.integers(0, 1000), min_size=n, max_size=n))
    signs, masks, stack = ballots(n, length, data.draw(st.integers(0, 2**32)), masked)
    bits = ref.votes_of(signs, masks, length)
    total = np.tensordot(np.ones(n, int) if weights is None else weights, bits, 1)
    result, tied = planes.majority_census(stack, length=length, ties=ties, weights=weights)
    assert tied == (total == 0).sum()
    plane = result[0] if ties == "zero" else result
    decided = total != 0
    assert np.array_equal(ref.plane_to_bits(plane, length)[decided], (total < 0)[decided])


@pytest.mark.parametrize(
    "weights, integers",
    [
        ([1, 2, 3], [1, 2, 3]),
        ([2, 4, 6], [1, 2, 3]),
        ([0.5, 0.25], [2, 1]),
        ([0.0, 0.0], [0, 0]),
        ([np.float32(0.5), np.int64(3)], [1, 6]),
        (np.array([1.5, 4.5]), [1, 3]),
        ([2**40, 2**40], [1, 1]),
        ([1 / 3, 1 / 3], [1, 1]),
    ],
)
def test_weights_become_integers_of_the_same_ratios(weights, integers):
    assert integer_weights("f", weights, len(integers)).tolist() == integers


@given(st.lists(st.floats(0, 1e300), min_size=1, max_size=300))
@settings(deadline=None)
def test_integer_weights_are_near_in_ratio_and_sum_below_two_to_the_31(weights):
    result = integer_weights("f", weights, len(weights)).tolist()
    assert sum(result) < 2**31
    largest = max(weights)
    if largest:
        unit = Fraction(max(result))
        for w, n in zip(weights, result, strict=True):
            assert abs(Fraction(w) / Fraction(largest) - n / unit) <= Fraction(1, 2**21)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"weights": [1, 2]}, "weights must be one for each of 3 rows, got 2"),
        ({"weights": [1, 2, -1]}, "weights must be finite and not negative, got -1"),
        ({"weights": [1, 2, float("nan")]}, "weights must be finite and not negative, got nan"),
        ({"weights": [[1, 2, 3]]}, "weights must be a list of numbers"),
        ({"weights": 1.0}, "weights must be a list of numbers"),
        ({"weights": ["a", "b", "c"]}, "weights must be a list of numbers"),
        ({"group": 2}, "group must be 1 or divide the 3 rows"),
        ({"group": 3, "weights": [1, 1, 1]}, "goes without weights"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        mpisign.majority(np.zeros((3, 2), np.uint8), **options)
