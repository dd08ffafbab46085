"""Counters in float64 words against plain counting, after every scaling an allreduce may apply."""

from __future__ import annotations

import numpy as np
import pytest
import reference as ref

from mpisign import planes
from mpisign.planes import counters

SIZES = [1, 2, 3, 4, 5, 8, 16, 63, 200]


def reduced(rows, length, size, predivide=None):
    """Counters of boolean rows (n, d), summed; as op=Average with that predivide factor, or Sum."""
    words = [counters.encode(ref.bits_to_plane(r), length, size) for r in rows]
    if predivide is None:
        return sum(words), 1.0
    total = sum(w * (1.0 / predivide) for w in words)
    return total * (predivide / size), float(size)


def expected(negative, cast, ties):
    """(bits, mask, tied) of a majority."""
    tied = 2 * negative == cast
    bits = 2 * negative > cast
    return bits, ~tied if ties == "zero" else np.ones_like(bits), tied


@pytest.mark.parametrize("size", SIZES)
def test_a_word_keeps_every_sum_exact(size):
    digits = counters.digits(size)
    assert (size + 1) ** digits <= 1 << 50
    if size == 4:
        assert digits == 21


@pytest.mark.parametrize("predivide", [None, 1.0, 3.0, 0.7, 7.3, 1e-3])
@pytest.mark.parametrize("size", SIZES)
def test_votes_after_any_scaling(size, predivide):
    rng = np.random.default_rng([size, int(10 * (predivide or 0))])
    for length in (1, 20, 21, 22, 127, 4097):
        rows = rng.random((size, length)) < rng.choice([0.1, 0.5, 1.0])
        words, unscale = reduced(rows, length, size, predivide)
        for ties in ("zero", "positive", "random"):
            out, bad = counters.decode(
                words, None, length, size, size, unscale=unscale, ties=ties, seed=5
            )
            assert bad == 0
            check(out, *expected(rows.sum(axis=0), size, ties), length, ties)


@pytest.mark.parametrize("size", [2, 3, 4, 16])
def test_abstentions_are_counted(size):
    rng = np.random.default_rng(size)
    length = 1003
    cast = rng.random((size, length)) < 0.6
    rows = (rng.random((size, length)) < 0.5) & cast
    for predivide in (None, 1.0, 3.0):
        words, unscale = reduced(rows, length, size, predivide)
        votes, _ = reduced(cast, length, size, predivide)
        for ties in ("zero", "positive", "random"):
            out, bad = counters.decode(
                words, votes, length, size, size, unscale=unscale, ties=ties, seed=5
            )
            assert bad == 0
            check(out, *expected(rows.sum(axis=0), cast.sum(axis=0), ties), length, ties)


def check(out, bits, mask, tied, length, ties):
    got = ref.plane_to_bits(out[0], length)
    if ties == "random":
        bits = np.where(tied, ref.random_bits(5, 0, ref.TIE_STREAM, 0, length), bits)
    assert (got == bits).all()
    assert len(out) == (2 if ties == "zero" else 1)
    if ties == "zero":
        assert (ref.plane_to_bits(out[1], length) == mask).all()
    assert all(planes.padding_is_zero(out, length))


def test_what_is_no_counter_is_told():
    rows = np.random.default_rng(0).random((4, 100)) < 0.5
    words, _ = reduced(rows, 100, 4)
    for spoil in (0.5, np.nan, np.inf, -1e15, 1e16):
        wrong = words.copy()
        wrong[2] = wrong[2] + spoil
        assert counters.decode(wrong, None, 100, 4, 4)[1] == 1


def test_the_seed_is_of_the_integers():
    words = np.array([3.0, 1e14, 7.0])
    scaled = words * (1 / 3.0)
    assert counters.seed_of(words, 1.0, 1) == counters.seed_of(scaled, 3.0, 1)
    assert counters.seed_of(words, 1.0, 1) != counters.seed_of(words, 1.0, 2)
    assert counters.seed_of(words, 1.0, 1) != counters.seed_of(words + [0, 0, 1], 1.0, 1)


def test_arrays_that_do_not_fit():
    plane = np.zeros(2, dtype=np.uint8)
    with pytest.raises(ValueError, match=r"encode: plane must be contiguous uint8 \(3,\)"):
        counters.encode(plane, 17, 4)
    with pytest.raises(ValueError, match="decode: negatives must be contiguous float64"):
        counters.decode(np.zeros(3), None, 17, 4, 4)
