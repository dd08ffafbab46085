"""What the kernels compute, in a few lines of NumPy each: slow, plain, from the specification."""

from __future__ import annotations

import numpy as np

#: Lengths around every boundary of bytes, words, blocks and slices.
LENGTHS = [0, 1, 7, 8, 9, 31, 32, 33, 63, 64, 65, 127, 128, 129, 151, 511, 513, 4095, 4096, 4097]
TIE_STREAM = 0x80000000


def philox(counter, key):
    """Philox4x32-10: counter uint64 (..., 4) of 32-bit words, key of 2."""
    c0, c1, c2, c3 = (np.asarray(c, dtype=np.uint64) for c in counter)
    k0, k1 = (np.uint64(k) for k in key)
    low = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (
            (p1 >> np.uint64(32)) ^ c1 ^ k0,
            p1 & low,
            (p0 >> np.uint64(32)) ^ c3 ^ k1,
            p0 & low,
        )
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & low, (k1 + np.uint64(0xBB67AE85)) & low
    return c0, c1, c2, c3


def random_bits(seed, step, stream, first, count):
    """Bits [first, first + count) of a stream, as booleans."""
    blocks = np.arange(first // 128, (first + count) // 128 + 1, dtype=np.uint64)
    zero = np.zeros_like(blocks)
    low = np.uint64(0xFFFFFFFF)
    counter = (
        blocks & low,
        blocks >> np.uint64(32),
        zero + np.uint64(step % 2**32),
        zero + np.uint64(stream),
    )
    words = np.stack(philox(counter, (seed % 2**32, seed >> 32)), axis=-1).astype("<u4")
    bits = np.unpackbits(words.view(np.uint8).reshape(-1), bitorder="little").astype(bool)
    return bits[first - 128 * (first // 128) :][:count]


def bits_to_plane(bits):
    return np.packbits(bits, bitorder="little")


def plane_to_bits(plane, length):
    return np.unpackbits(plane, bitorder="little")[:length].astype(bool)


def pack(x, zeros="positive", seed=0, step=0, rank=0, offset=0):
    """(sign plane, mask plane) of an array; NaN abstains."""
    x = np.asarray(x).reshape(-1)
    negative = (x < 0) & (x != 0)
    votes = ~np.isnan(x)
    if zeros == "random":
        negative |= (x == 0) & random_bits(seed, step, rank, offset, x.size)
    if zeros == "abstain":
        votes &= x != 0
    return bits_to_plane(negative), bits_to_plane(votes)


def majority(signs, masks=None, ties="positive", seed=0, step=0, offset=0, length=None):
    """(sign plane, mask plane) of a stack (n, B)."""
    length = 8 * signs.shape[1] if length is None else length
    negative = np.stack([plane_to_bits(s, length) for s in signs])
    votes = (
        np.ones_like(negative)
        if masks is None
        else np.stack([plane_to_bits(m, length) for m in masks])
    )
    total = np.where(votes, np.where(negative, -1, 1), 0).sum(axis=0)
    result, mask = total < 0, np.ones(length, dtype=bool)
    if ties == "random":
        result = np.where(total == 0, random_bits(seed, step, TIE_STREAM, offset, length), result)
    if ties == "zero":
        mask = total != 0
    return bits_to_plane(result), bits_to_plane(mask)


def vote(xs, ties="zero"):
    """sign of the sum of signs of a list of arrays, ties 0."""
    return np.sign(sum(np.sign(x.astype(np.float64)) for x in xs))


def awkward(length, seed, dtype=np.float32):
    """Normal numbers with zeros, -0.0, subnormals and infinities among them."""
    rng = np.random.default_rng([seed, length])
    x = rng.standard_normal(length).astype(np.float32)
    kind = rng.integers(0, 8, length)
    x[kind == 0] = 0.0
    x[kind == 1] = -0.0
    x = x.astype(dtype)
    tiny = np.frombuffer(b"\x01" + bytes(np.dtype(dtype).itemsize - 1), dtype=dtype)[0]
    x[kind == 2] = tiny
    x[kind == 3] = -tiny
    x[kind == 4] = np.where(x[kind == 4] > 0, np.inf, -np.inf).astype(dtype)
    return x
