"""Votes as counters in float64 words, which any summing allreduce can carry.

Wire layout: a word holds ``digits(p)`` counters as digits of base p + 1, coordinate i the lowest of
its word first; a rank's own digit is 1 for a negative vote. Sums of p such words never carry from
one digit into the next. At 4 ranks a word holds 21 counters: 3.05 bits per coordinate.
"""

from __future__ import annotations

import functools
import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

from mpisign import _kernels, planes, policies
from mpisign.backend import threads

Words = npt.NDArray[np.float64]
Planes = npt.NDArray[np.uint8]

_TOLERANCE = 0.375  # of integer_of in kernels/counters.c


@functools.cache
def digits(size: int) -> int:
    """Counters per word for ``size`` ranks: base**digits <= 2**50, and exact after any scaling.

    A reduction may scale before the sum (gradient_predivide_factor) and after it (Average). Then
    each of the size + 1 roundings costs up to half a unit in the last place, and the two factors
    and the unscaling another three of 2**-53; the whole must stay below the decoder's tolerance.
    """
    base, best, k = size + 1, 1, 1
    while base**k <= 1 << 50:
        half_unit = 2.0 ** ((base**k - 1).bit_length() - 54)
        if half_unit * (2 + (size + 1) / 2) + 3 * base**k / 2**53 < _TOLERANCE:
            best = k
        k += 1
    return best


def n_words(length: int, size: int) -> int:
    """Words that ``length`` counters take among ``size`` ranks."""
    return -(-length // digits(size))


def encode(plane: Planes, length: int, size: int, out: Words | None = None) -> Words:
    """One rank's counters: digit 1 where the bit of ``plane`` is set.

    ``plane``: contiguous uint8 (ceil(length / 8),); returns float64 (n_words(length, size),), or
    ``out``. ValueError if the arrays do not fit.
    """
    if out is None:
        out = np.empty(n_words(length, size), dtype=np.float64)
    _check("encode", "plane", plane, np.uint8, planes.plane_bytes(length))
    _check("encode", "out", out, np.float64, n_words(length, size))
    base = (size + 1, digits(size))
    _kernels.encode_counts(plane.ctypes.data, length, *base, out.ctypes.data, threads.count())
    return out


def decode(
    negatives: Words,
    votes: Words | None,
    length: int,
    size: int,
    voters: int,
    *,
    unscale: float = 1.0,
    ties: policies.Ties = policies.DEFAULT_TIES,
    seed: int = 0,
) -> tuple[Planes, int]:
    """Returns (the majority, the number of words that are no counters) of summed counters.

    ``negatives``: summed counters of negative votes; ``votes``: of votes cast, None if all
    ``voters`` voted everywhere; ``unscale`` times a received word is an integer. The majority is
    uint8 (kd, B), kd = 2 under ``ties="zero"``, as ``mpisign.majority`` returns it; ``seed`` keys
    the random bits of ties. ValueError if the arrays do not fit.
    """
    for argument, words in (("negatives", negatives), ("votes", votes)):
        if words is not None:
            _check("decode", argument, words, np.float64, n_words(length, size))
    counts = (negatives.ctypes.data, 0 if votes is None else votes.ctypes.data, unscale, voters)
    out = np.empty((policies.planes_down(ties), planes.plane_bytes(length)), dtype=np.uint8)
    result = (length, out.ctypes.data, out[1].ctypes.data if len(out) == 2 else 0)
    rule = policies.code("decode", "ties", ties, policies.TIES)
    key = (seed, 0, policies.TIE_STREAM, 0)
    base = (size + 1, digits(size))
    return out, _kernels.decode_counts(*counts, *base, *result, rule, key, threads.count())


def sampled(words: Words, length: int, size: int, unscale: float, most: int) -> Any:
    """About ``most`` of the ``length`` counters in summed words, spread evenly: float64 (n,)."""
    k = digits(size)
    at = np.arange(0, len(words), max(1, len(words) * k // most))
    counts = np.rint(words[at] * unscale)[:, None] // float(size + 1) ** np.arange(k) % (size + 1)
    return counts[at[:, None] * k + np.arange(k) < length]


def seed_of(words: Words, unscale: float, seed: int) -> int:
    """64 bits that all ranks share: BLAKE2b of the integers behind received words, keyed by seed.

    The words themselves may differ from rank to rank: a reduction that scales rounds.
    """
    integers = np.rint(words * unscale).astype(np.int64)
    digest = hashlib.blake2b(integers.data, digest_size=8, key=seed.to_bytes(8, "little"))
    return int.from_bytes(digest.digest(), "little")


def _check(function: str, argument: str, array: Any, dtype: Any, length: int) -> None:
    if array.dtype != dtype or array.shape != (length,) or not array.flags.c_contiguous:
        raise ValueError(
            f"{function}: {argument} must be contiguous {np.dtype(dtype).name} ({length},), "
            f"got {array.dtype} {array.shape}"
        )
