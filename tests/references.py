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


def stream_bytes(seed, step, stream, first, last, kind=0):
    """Blocks [first, last) of a stream as bytes; ``kind`` holds the counter's two top bits."""
    blocks = np.arange(first, last, dtype=np.uint64) | np.uint64(kind << 62)
    low = np.uint64(0xFFFFFFFF)
    counter = (
        blocks & low,
        blocks >> np.uint64(32),
        np.full_like(blocks, step % 2**32),
        np.full_like(blocks, stream),
    )
    words = np.stack(philox(counter, (seed % 2**32, seed >> 32)), axis=-1).astype("<u4")
    return words.view(np.uint8).reshape(-1)


def random_bits(seed, step, stream, first, count):
    """Bits [first, first + count) of a stream, as booleans."""
    data = stream_bytes(seed, step, stream, first // 128, (first + count) // 128 + 1)
    return np.unpackbits(data, bitorder="little").astype(bool)[first % 128 :][:count]


def random_halves(seed, step, stream, first, count):
    data = stream_bytes(seed, step, stream, first // 8, (first + count) // 8 + 1, kind=2)
    return data.view("<u2")[first % 8 :][:count]


def random_words(seed, step, stream, first, count):
    data = stream_bytes(seed, step, stream, first // 4, (first + count) // 4 + 1, kind=3)
    return data.view("<u4")[first % 4 :][:count]


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


def votes_of(signs, masks=None, length=None):
    """A stack (n, B) as int64 votes (n, length): +1, -1, 0 where the mask is 0."""
    length = 8 * signs.shape[1] if length is None else length
    negative = np.stack([plane_to_bits(s, length) for s in signs])
    present = True if masks is None else np.stack([plane_to_bits(m, length) for m in masks])
    return np.where(present, np.where(negative, -1, 1), 0)


def majority(
    signs, masks=None, ties="positive", seed=0, step=0, offset=0, length=None, weights=None, group=1
):
    """(sign plane, mask plane) of a stack (n, B); weights (n,) or groups of consecutive rows."""
    votes = votes_of(signs, masks, length)
    length = votes.shape[1]
    if weights is not None:
        votes = votes * np.asarray(weights, dtype=np.int64)[:, None]
    votes = np.sign(votes.reshape(-1, group, length).sum(axis=1)) if group > 1 else votes
    total = votes.sum(axis=0)
    result, mask = total < 0, np.ones(length, dtype=bool)
    if ties == "random":
        result = np.where(total == 0, random_bits(seed, step, TIE_STREAM, offset, length), result)
    if ties == "zero":
        mask = total != 0
    return bits_to_plane(result), bits_to_plane(mask)


def group_distances(signs, masks=None, group=1, length=None):
    """How many votes of each row differ from the majority of its group, where that has one."""
    votes = votes_of(signs, masks, length).reshape(len(signs) // group, group, -1)
    verdict = np.sign(votes.sum(axis=1, keepdims=True))
    return (votes * verdict < 0).sum(axis=2).reshape(-1)


def tally(signs, masks=None, weights=None, length=None, planes=32):
    """Count planes (planes, B) of the negative and of the positive votes, lowest bit first."""
    votes = votes_of(signs, masks, length)
    w = np.ones(len(votes), dtype=np.int64) if weights is None else np.asarray(weights, np.int64)
    counts = [(w[:, None] * (votes == sign)).sum(axis=0) for sign in (-1, 1)]
    return tuple(
        np.stack([bits_to_plane((c >> j & 1).astype(bool)) for j in range(planes)]) for c in counts
    )


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


def widened(x):
    """A gradient as the fused kernels compute with it: fp64 rounded to fp32, fp16, bf16 exact."""
    with np.errstate(over="ignore"):
        return np.asarray(x).reshape(-1).astype(np.float32)


def signum(grad, momentum, beta=0.9):
    """(what is voted on in fp32, new momentum in its dtype): pack() the first."""
    g, m = widened(grad), momentum.reshape(-1)
    new = np.float32(beta) * m.astype(np.float32) + np.float32(1 - beta) * g
    stored = new.astype(m.dtype)
    return stored.astype(np.float32), np.where(np.isfinite(stored), stored, m)


def lion(grad, momentum, beta1=0.9, beta2=0.99):
    """As ``signum``; what is voted on is not what is stored."""
    g, m = widened(grad), momentum.reshape(-1)
    v = np.float32(beta1) * m.astype(np.float32) + np.float32(1 - beta1) * g
    new = np.float32(beta2) * m.astype(np.float32) + np.float32(1 - beta2) * g
    stored, bad = new.astype(m.dtype), np.isnan(v) | np.isnan(new)
    keep = bad | ~np.isfinite(stored)
    return np.where(bad, np.float32("nan"), v), np.where(keep, m, stored)


def sparsign(grad, budget, seed=0, step=0, rank=0, offset=0):
    """(sign plane, mask plane); ``offset`` in coordinates."""
    g = widened(grad)
    t = np.float32(budget) * np.abs(g) * np.float32(65536)
    half = random_halves(seed, step, rank, offset, g.size).astype(np.float32)
    word = random_words(seed, step, rank, offset, g.size)
    more = (word >> 8).astype(np.float32) < (t - half) * np.float32(16777216)
    votes = (t >= half + 1) | ((t > half) & more)
    return bits_to_plane(votes & (g < 0)), bits_to_plane(votes)


def tree_sum(x):
    """The sum of fp32 values in the one order that all kernels keep: halves of 256, and again."""
    while True:
        x = np.pad(x, (0, -x.size % 256)).reshape(-1, 256)
        for half in (128, 64, 32, 16, 8, 4, 2, 1):
            x = x[:, :half] + x[:, half:]
        x = x[:, 0]
        if x.size == 1:
            return x[0]


def error_feedback(
    grad, residual, rate=1.0, block=None, zeros="positive", seed=0, step=0, rank=0, offset=0
):
    """(sign plane, mask plane, scales, new residual, zeros, values not finite)."""
    g, e = widened(grad), residual.reshape(-1)
    q = np.float32(rate) * g + e
    good = np.isfinite(q)
    for at in range(0, q.size, block or q.size or 1):  # a sum that overflows spoils its block
        part = slice(at, at + (block or q.size))
        good[part] &= np.isfinite(tree_sum(np.where(good[part], np.abs(q[part]), np.float32(0))))
    sign, mask = pack(np.where(good, q, np.nan), zeros, seed, step, rank, offset)
    voted = np.where(plane_to_bits(sign, q.size), np.float32(-1), np.float32(1))
    voted *= plane_to_bits(mask, q.size)
    scales, new = [], e.copy()
    for at in range(0, q.size, block or q.size or 1):
        part = slice(at, at + (block or q.size))
        magnitude = np.where(good[part], np.abs(q[part]), np.float32(0))
        scales.append(tree_sum(magnitude) / np.float32(magnitude.size))
        d = np.where(voted[part] == 0, np.float32(0), scales[-1] * voted[part])
        new[part] = np.where(good[part], q[part] - d, e[part])
    zeros_counted = int(((q == 0) & good).sum())
    return sign, mask, np.array(scales, np.float32), new, zeros_counted, int((~good).sum())


def weighted_sum(signs, masks, weights, block=None, start=0.0, scale=1.0, length=None):
    """fp32 (length,): rows are added in order; weights (n, blocks)."""
    votes = votes_of(signs, masks, length).astype(np.float32)
    y = np.full(votes.shape[1], np.float32(start))
    for vote, w in zip(votes, np.asarray(weights, dtype=np.float32), strict=True):
        w = np.repeat(w, block or max(1, y.size))[: y.size]
        y = np.where(vote == 0, y, y + w * vote)
    return y * np.float32(scale)


def mean_of_counts(counts, voters, length=None):
    """The mean of ``voters`` signs from the count planes (k, B) of the negative ones."""
    negative = sum(plane_to_bits(c, length).astype(np.int64) << j for j, c in enumerate(counts))
    return (voters - 2 * negative).astype(np.float32) * np.float32(1 / voters)


def _computing(dtype):
    return np.float64 if dtype == np.float64 else np.float32


def unpack_add(sign, mask, out, scale=1.0):
    """``out`` (any float dtype, flat) with +-scale added where the mask is 1."""
    y = out.astype(_computing(out.dtype))
    (vote,) = votes_of(sign[None], None if mask is None else mask[None], out.size).astype(y.dtype)
    return np.where(vote == 0, out, (y + y.dtype.type(scale) * vote).astype(out.dtype))


def update(sign, mask, parameter, rate, weight_decay=0.0):
    """parameter - rate (vote + weight_decay parameter), each operation rounded."""
    p = parameter.astype(_computing(parameter.dtype))
    (vote,) = votes_of(sign[None], None if mask is None else mask[None], p.size).astype(p.dtype)
    return (p - p.dtype.type(rate) * (vote + p.dtype.type(weight_decay) * p)).astype(
        parameter.dtype
    )


def same(a, b):
    """Equal bit for bit, but that any NaN equals any other."""
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    bits = f"u{a.dtype.itemsize}"
    equal = np.ascontiguousarray(a).view(bits) == np.ascontiguousarray(b).view(bits)
    return bool((equal | ((a != a) & (b != b))).all())
