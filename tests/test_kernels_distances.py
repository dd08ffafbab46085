"""How far rows are from their group's vote: masks, ties, any strides, every instruction set."""

from __future__ import annotations

import numpy as np
import pytest
import reference as ref
import samples
from fused_arrays import isa, isa_restored  # noqa: F401
from hypothesis import given, settings
from hypothesis import strategies as st

from mpisign import planes


def ballots(n, length, seed, masked):
    """(signs, masks or None, the stack as the kernels take it); padding bits are anything."""
    rng = np.random.default_rng([seed, n, length])
    signs = rng.integers(0, 256, (n, -(-length // 8)), dtype=np.uint8)
    if not masked:
        return signs, None, signs
    masks = rng.integers(0, 256, signs.shape, dtype=np.uint8) | rng.integers(0, 256, 1, np.uint8)
    return signs, masks, np.stack([signs, masks], axis=1)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "n, group",
    [(1, 1), (4, 1), (2, 2), (12, 4), (3, 3), (9, 3), (64, 2), (63, 3), (15, 5), (14, 7), (18, 9)]
    + [(15, 15), (30, 15), (45, 3), (45, 5), (45, 15), (45, 45), (64, 64), (64, 16), (51, 17)],
)
def test_every_length(n, group, masked):
    for length in [*samples.LENGTHS, 8 * 2048 + 5, 8 * 2 * 2048 - 1]:
        if n > 18 and length not in (1, 65, 513, 4097, 8 * 2048 + 5):
            continue
        signs, masks, stack = ballots(n, length, group, masked)
        result = planes.group_distances(stack, group=group, length=length)
        assert result.dtype == np.int64 and result.shape == (n,)
        wanted = ref.group_distances(signs, masks, group, length)
        assert np.array_equal(result, wanted), length


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("masked", [False, True])
def test_every_size_of_a_group(masked):
    for group in range(1, 65):
        for n in (group, 2 * group):
            signs, masks, stack = ballots(n, 300, 5, masked)
            wanted = ref.group_distances(signs, masks, group, 300)
            assert np.array_equal(planes.group_distances(stack, group=group, length=300), wanted)


@pytest.mark.usefixtures("isa")
def test_what_counts():
    ones, zeros = np.full(3, 0xFF, np.uint8), np.zeros(3, np.uint8)
    distances = planes.group_distances
    assert distances([ones, zeros, zeros], group=3).tolist() == [24, 0, 0]
    assert distances([ones, zeros, zeros], group=3, length=17).tolist() == [17, 0, 0]
    # A tie is no verdict; a row alone is its own; who abstains differs from nobody.
    assert distances([ones, zeros], group=2).tolist() == [0, 0]
    assert distances([ones, zeros], group=1).tolist() == [0, 0]
    some = np.array([0x0F, 0, 1], np.uint8)
    voted = [np.stack(rows) for rows in ((ones, some), (zeros, ones), (zeros, ones))]
    assert distances(voted, group=3).tolist() == [5, 0, 0]
    # Where one of two abstains, the other is the majority.
    assert distances(voted[:2], group=2).tolist() == [0, 0]


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("masked", [False, True])
def test_rows_of_any_stride(masked):
    _, _, stack = ballots(9, 4099, 6, masked)
    wanted = planes.group_distances(stack, group=3, length=4099)
    room = np.random.default_rng(0).integers(0, 256, (18, *stack.shape[1:-1], 1000), np.uint8)
    for every, start in ((1, 0), (2, 1), (1, 64), (2, 13)):
        view = room[: 9 * every : every, ..., start : start + stack.shape[-1]]
        view[...] = stack
        assert np.array_equal(planes.group_distances(view, group=3, length=4099), wanted)
    backwards = planes.group_distances(stack[::-1], group=3, length=4099)
    assert np.array_equal(backwards, wanted[::-1])
    listed = planes.group_distances(list(stack), group=3, length=4099)
    assert np.array_equal(listed, wanted)


def test_threads_change_nothing(monkeypatch):
    for masked in (False, True):
        _, _, stack = ballots(15, 2_000_003, 7, masked)
        results = []
        for threads in (1, 2, 3, 100):
            monkeypatch.setattr(planes.vote.threads, "for_work", lambda _, t=threads: t)
            results.append(planes.group_distances(stack, group=5, length=2_000_003).tolist())
        assert all(result == results[0] for result in results)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_any_stack(data):
    group = data.draw(st.integers(1, 20))
    n = group * data.draw(st.integers(1, 5))
    length = data.draw(st.integers(0, 2000))
    signs, masks, stack = ballots(
        n, length, data.draw(st.integers(0, 99)), data.draw(st.booleans())
    )
    wanted = ref.group_distances(signs, masks, group, length)
    assert np.array_equal(planes.group_distances(stack, group=group, length=length), wanted)


def test_it_is_the_distance_to_what_majority_says():
    signs, _, stack = ballots(21, 5000, 8, False)
    votes = [planes.majority(stack[g : g + 7], length=5000) for g in (0, 7, 14)]
    apart = [ref.plane_to_bits(row ^ votes[r // 7], 5000).sum() for r, row in enumerate(signs)]
    assert planes.group_distances(stack, group=7, length=5000).tolist() == apart


def test_torch():
    torch = pytest.importorskip("torch")
    _, _, stack = ballots(6, 500, 9, True)
    result = planes.group_distances(torch.from_numpy(stack), group=3, length=500)
    assert isinstance(result, np.ndarray)
    assert np.array_equal(result, planes.group_distances(stack, group=3, length=500))


@pytest.mark.parametrize(
    "stack, options, message",
    [
        (np.zeros((3, 2), np.uint8), {"group": 2}, "group must divide the 3 rows, got 2"),
        (np.zeros((3, 2), np.uint8), {"group": 0}, "group must divide the 3 rows, got 0"),
        (np.zeros((3, 2), np.uint8), {"group": 3, "length": 8}, "length must fit planes of 2"),
        (np.zeros((3, 3, 2), np.uint8), {"group": 3}, r"stack must have shape \(n, B\) or"),
    ],
)
def test_errors(stack, options, message):
    with pytest.raises(ValueError, match=f"group_distances: {message}"):
        planes.group_distances(stack, **options)
