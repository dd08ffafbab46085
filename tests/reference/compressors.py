"""What a rank sends of its gradient and what it keeps: every compressor.

Equations in fp32, each operation rounded. ``keys``: seed, step, rank, offset of random bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from reference.planes import (
    bits_to_plane,
    pack,
    plane_to_bits,
    random_halves,
    random_words,
)
from reference.votes import votes_of


def widened(x: Any) -> Any:
    """A gradient, flat, in fp32: fp64 is rounded, fp16 and bf16 are exact."""
    with np.errstate(over="ignore"):
        return np.asarray(x).reshape(-1).astype(np.float32)


def signum(grad: Any, momentum: Any, beta: float = 0.9) -> tuple[Any, Any]:
    """m = b m + (1 - b) g; sends sign(m). Returns (m in fp32, the m that is kept, in its dtype).

    A coordinate that is not finite keeps its old m. Source: Bernstein et al. 2018, signSGD,
    Algorithm 2; 2019, signSGD with majority vote, Algorithm 1.
    """
    g, m = widened(grad), momentum.reshape(-1)
    new = np.float32(beta) * m.astype(np.float32) + np.float32(1 - beta) * g
    stored = new.astype(m.dtype)
    return stored.astype(np.float32), np.where(np.isfinite(stored), stored, m)


def lion(grad: Any, momentum: Any, beta1: float = 0.9, beta2: float = 0.99) -> tuple[Any, Any]:
    """Sends sign(b1 m + (1 - b1) g); m = b2 m + (1 - b2) g. Returns as ``signum``.

    Source: Chen et al. 2023, Symbolic discovery, Algorithm 2; Liu et al. 2024, Distributed Lion,
    Algorithm 1 (MaVo: the majority; Avg, ``lion_avg``: the mean of signs).
    """
    g, m = widened(grad), momentum.reshape(-1)
    v = np.float32(beta1) * m.astype(np.float32) + np.float32(1 - beta1) * g
    new = np.float32(beta2) * m.astype(np.float32) + np.float32(1 - beta2) * g
    stored, bad = new.astype(m.dtype), np.isnan(v) | np.isnan(new)
    keep = bad | ~np.isfinite(stored)
    return np.where(bad, np.float32("nan"), v), np.where(keep, m, stored)


def tree_sum(x: Any) -> Any:
    """The sum of fp32 values in the one order that all kernels keep: halves of 256, and again."""
    while True:
        x = np.pad(x, (0, -x.size % 256)).reshape(-1, 256)
        for half in (128, 64, 32, 16, 8, 4, 2, 1):
            x = x[:, :half] + x[:, half:]
        x = x[:, 0]
        if x.size == 1:
            return x[0]


def error_feedback(
    grad: Any,
    residual: Any,
    rate: float = 1.0,
    block: int | None = None,
    zeros: str = "positive",
    **keys: int,
) -> tuple[Any, Any, Any, Any, int, int]:
    """q = rate g + e; D = (l1(q) / n) sign(q) for each block of n coordinates; e = q - D.

    Returns (sign plane, mask plane, scales, new residual, zeros, values not finite). What is not
    finite does not vote and keeps its e; a block whose sum overflows is not finite.

    Source: Karimireddy et al. 2019, Error feedback fixes SignSGD, Algorithm 1; blocks and ranks:
    Zheng et al. 2019, Blockwise momentum SGD with error feedback, Algorithm 2.
    """
    g, e = widened(grad), residual.reshape(-1)
    q = np.float32(rate) * g + e
    good, n = np.isfinite(q), block or q.size or 1
    blocks = [slice(at, at + n) for at in range(0, q.size, n)]
    for part in blocks:
        good[part] &= np.isfinite(tree_sum(np.where(good[part], np.abs(q[part]), np.float32(0))))
    sign, mask = pack(np.where(good, q, np.nan), zeros, **keys)
    voted = np.where(plane_to_bits(sign, q.size), np.float32(-1), np.float32(1))
    voted *= plane_to_bits(mask, q.size)
    scales, new = [], e.copy()
    for part in blocks:
        magnitude = np.where(good[part], np.abs(q[part]), np.float32(0))
        scales.append(tree_sum(magnitude) / np.float32(magnitude.size))
        d = np.where(voted[part] == 0, np.float32(0), scales[-1] * voted[part])
        new[part] = np.where(good[part], q[part] - d, e[part])
    zeros_counted = int(((q == 0) & good).sum())
    return sign, mask, np.array(scales, np.float32), new, zeros_counted, int((~good).sum())


def sparsign(
    grad: Any, budget: float, seed: int = 0, step: int = 0, rank: int = 0, offset: int = 0
) -> tuple[Any, Any]:
    """sign(g_i) with probability min(1, B |g_i|), else no vote: (sign plane, mask plane).

    B |g| is compared with a uniform number of 40 bits: 16 of a half, 24 of a word.

    Source: Jin et al. 2023, Magnitude matters, definition 1.
    """
    g = widened(grad)
    t = np.float32(budget) * np.abs(g) * np.float32(65536)
    half = random_halves(seed, step, rank, offset, g.size).astype(np.float32)
    word = random_words(seed, step, rank, offset, g.size)
    more = (word >> 8).astype(np.float32) < (t - half) * np.float32(16777216)
    votes = (t >= half + 1) | ((t > half) & more)
    return bits_to_plane(votes & (g < 0)), bits_to_plane(votes)


def largest(
    x: Any, density: float, seed: int = 0, step: int = 0, rank: int = 0, offset: int = 0
) -> tuple[Any, Any]:
    """The signs of the ceil(density n) largest |x|: (sign plane, mask plane).

    The threshold t is exact up to 2^14 coordinates, else that of a sample. As many of those at t
    vote as there is room for, by chance. Source: the top-k of Lin et al. 2018, Deep gradient
    compression, section 3.1, with its sampled threshold, on votes.
    """
    size, n = np.abs(x), x.size
    t = np.float32(0)
    if n:
        sample = size
        if n > 1 << 14:
            counter, key = np.array([0, offset, step, rank], "u8"), np.array([seed, 1], "u8")
            rng = np.random.Generator(np.random.Philox(counter=counter, key=key))
            sample = size[rng.integers(n, size=1 << 14)]
        ordered = np.sort(np.where(np.isnan(sample), 0, sample))
        t = ordered[-int(np.ceil(density * sample.size))]
    t = np.clip(t, np.float32(1.4e-45), np.finfo(np.float32).max)
    room = max(0, int(np.ceil(density * n)) - int((size > t).sum()))
    share = np.float32(min(1, room / max(1, (size == t).sum())))
    chance = np.where(size > t, np.float32(1), np.where(size == t, share, np.float32(0)))
    return sparsign(np.copysign(chance, x), 1.0, seed, step, rank, offset)


def local_steps(grads: Sequence[Any], budget: float, step: int = 0, **keys: int) -> Any:
    """Sums of sparsign(g; B_local) after each of a rank's local steps, (steps, n) float32.

    The last is what ``ef_sparsign`` sends, by a sparsign with B_global. Source: Jin et al. 2023,
    Algorithm 2, lines 3 to 7.
    """
    moves = []
    for i, g in enumerate(grads):
        sign, mask = sparsign(g, budget, step=step + i, **keys)
        moves.append(votes_of(sign[None], mask[None], np.size(g))[0])
    return np.cumsum(moves, axis=0).astype(np.float32)


def participants(share: float, seed: int, step: int, size: int) -> list[int]:
    """The ranks that take part in a step: those with the smallest of ``size`` random words."""
    key, counter = np.array([seed, 1], "u8"), np.array([0, step, 0, 0], "u8")
    words = np.random.Philox(counter=counter, key=key).random_raw(size)
    return sorted(np.argsort(words)[: max(1, int(np.floor(share * size + 0.5)))].tolist())


def server_residual(mean: Any, residual: Any) -> tuple[Any, Any]:
    """v = mean + e; out = (l1(v) / d) sign(v); e = v - out, on the aggregate: (out, e).

    Source: Jin et al. 2023, Algorithm 2, the server's lines.
    """
    v = mean + residual
    out = tree_sum(np.abs(v)) / np.float32(v.size) * np.sign(v) if v.size else v
    return out, v - out


def _noise(seed: int, step: int, rank: int, offset: int) -> np.random.Generator:
    counter = np.array([0, offset, step, rank], np.uint64)
    return np.random.Generator(np.random.Philox(counter=counter, key=np.array([seed, 0], "u8")))


def noisy_sign(g: Any, scale: float, noise: str = "normal", **keys: int) -> Any:
    """g + s xi, of which the sign is sent; xi normal or uniform in [-1, 1).

    Source: Chen et al. 2020, Bridging median- and mean-based algorithms; Tang et al. 2023,
    z-SignFedAvg (z = 1: normal, z = infinity: uniform).
    """
    rng, g = _noise(**keys), widened(g)
    if noise == "normal":
        return np.float32(scale) * rng.standard_normal(g.size, dtype=np.float32) + g
    return np.float32(scale) * (2 * rng.random(g.size, dtype=np.float32) - np.float32(1)) + g


def stochastic_sign(g: Any, bound: float, **keys: int) -> Any:
    """P(+) = 1/2 + g / (2 b): the sign of g + b u, u uniform in [-1, 1).

    Source: Jin et al. 2020, Stochastic-sign SGD, definition 1.
    """
    return noisy_sign(g, bound, "uniform", **keys)


def terngrad(g: Any, order: float = np.inf, **keys: int) -> tuple[Any, Any, Any]:
    """s sign(g_i) with probability |g_i| / s, s = max |g|: (sign plane, mask plane, s).

    What is not finite neither votes nor counts in s; an s whose inverse fp32 does not hold sends
    nothing. Source: Wen et al. 2017, TernGrad, equations 1 to 4.
    """
    x = widened(g)
    good = np.isfinite(x)
    norm = np.linalg.norm(np.where(good, x, 0).astype(np.float64), order) if x.size else 0.0
    s = min(np.float32(norm), np.finfo(np.float32).max)
    if s < 2.94e-39:
        nothing = np.zeros(-(-x.size // 8), np.uint8)
        return nothing, nothing, np.float32(0)
    return *sparsign(np.where(good, x, np.float32("nan")), 1 / float(s), **keys), s


def qsgd(g: Any, **keys: int) -> tuple[Any, Any, Any]:
    """As ``terngrad`` with s = |g|_2 (Alistarh et al. 2017, QSGD, section 3.1, one level)."""
    return terngrad(g, 2, **keys)
