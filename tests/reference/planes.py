"""Sign planes and the random bits that zeros, ties and sparse signs draw from."""

from __future__ import annotations

from typing import Any

import numpy as np

#: The stream that ties draw from: no rank has it.
TIE_STREAM = 0x80000000


def philox(counter: Any, key: Any) -> tuple[Any, ...]:
    """Philox4x32-10 (Salmon et al. 2011, SC11, section 3.3): four words of a counter, two of a key.

    Each round multiplies two words, 32 x 32 to 64 bits, and mixes the halves with key and counter.
    """
    c0, c1, c2, c3 = (np.asarray(c, dtype=np.uint64) for c in counter)
    k0, k1 = (np.uint64(k) for k in key)
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (p1 >> half) ^ c1 ^ k0, p1 & low, (p0 >> half) ^ c3 ^ k1, p0 & low
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & low, (k1 + np.uint64(0xBB67AE85)) & low
    return c0, c1, c2, c3


def _stream(seed: int, step: int, stream: int, first: int, last: int, kind: int) -> Any:
    """Blocks [first, last) of 16 bytes. Key: the seed. Counter: block (64 bits), step, stream; the
    block's two top bits hold ``kind``."""
    blocks = np.arange(first, last, dtype=np.uint64) | np.uint64(kind << 62)
    steps, streams = np.full_like(blocks, step % 2**32), np.full_like(blocks, stream)
    counter = blocks & np.uint64(0xFFFFFFFF), blocks >> np.uint64(32), steps, streams
    words = np.stack(philox(counter, (seed % 2**32, seed >> 32)), axis=-1).astype("<u4")
    return words.view(np.uint8).reshape(-1)


def random_bits(seed: int, step: int, stream: int, first: int, count: int) -> Any:
    """Bits [first, first + count) of a stream, as booleans."""
    data = _stream(seed, step, stream, first // 128, (first + count) // 128 + 1, kind=0)
    return np.unpackbits(data, bitorder="little").astype(bool)[first % 128 :][:count]


def random_halves(seed: int, step: int, stream: int, first: int, count: int) -> Any:
    """Numbers of 16 bits: the first half of the threshold of ``sparsign``."""
    data = _stream(seed, step, stream, first // 8, (first + count) // 8 + 1, kind=2)
    return data.view("<u2")[first % 8 :][:count]


def random_words(seed: int, step: int, stream: int, first: int, count: int) -> Any:
    """Numbers of 32 bits: the second half of the threshold of ``sparsign``."""
    data = _stream(seed, step, stream, first // 4, (first + count) // 4 + 1, kind=3)
    return data.view("<u4")[first % 4 :][:count]


def bits_to_plane(bits: Any) -> Any:
    """Booleans (d,) as bytes (ceil(d / 8),), element i at bit i; padding bits are 0."""
    return np.packbits(bits, bitorder="little")


def plane_to_bits(plane: Any, length: int | None) -> Any:
    """The first ``length`` bits of a plane, as booleans."""
    return np.unpackbits(plane, bitorder="little")[:length].astype(bool)


def pack(
    x: Any, zeros: str = "positive", seed: int = 0, step: int = 0, rank: int = 0, offset: int = 0
) -> tuple[Any, Any]:
    """(sign plane, mask plane) of sign(x) (Bernstein et al. 2018, signSGD, Algorithm 1).

    ``zeros``: "positive" votes +, "random" draws a bit from the rank's stream, "abstain" does not
    vote. NaN never votes.
    """
    x = np.asarray(x).reshape(-1)
    negative = (x < 0) & (x != 0)
    votes = ~np.isnan(x)
    if zeros == "random":
        negative |= (x == 0) & random_bits(seed, step, rank, offset, x.size)
    if zeros == "abstain":
        votes &= x != 0
    return bits_to_plane(negative), bits_to_plane(votes)
