"""Sketches of shards: so few numbers that all ranks may have them, which tell how far rows are."""

from __future__ import annotations

from typing import Any

import numpy as np

#: Sums of a sketch. A squared distance is estimated with a relative standard deviation of at most
#: sqrt(2 / WIDTH), 18%.
WIDTH = 64
_BLOCK = 1 << 16  # coordinates whose random bytes are drawn together


def sketch(x: Any, seed: bytes, shard: int) -> Any:
    """``WIDTH`` sums of x's coordinates with random signs, each coordinate in one sum: float32.

    ``x``: float32 (n,), contiguous, on the host. ``seed``: 32 bytes. The same bits for the same x,
    seed and shard on every machine: a random byte a coordinate, of Philox4x64-10, keyed by seed and
    shard, whose low 6 bits say the sum and whose highest the sign; added in float64, in order. For
    two rows with one seed |sketch(x) - sketch(y)|^2 is |x - y|^2 on average. Source: Charikar, Chen
    and Farach-Colton 2002, Finding frequent items in data streams; Thorup and Zhang 2004.
    """
    words = np.frombuffer(seed, dtype="<u8").astype(np.uint64)
    # The first word counts the blocks that are drawn.
    counter = np.array([0, shard, *words[2:]], dtype=np.uint64)
    bits = np.random.Philox(key=words[:2], counter=counter)
    total = np.zeros(WIDTH)
    for first in range(0, x.size, _BLOCK):
        part = x[first : first + _BLOCK]
        drawn = bits.random_raw(-(-part.size // 8)).astype("<u8", copy=False)
        draw = drawn.view(np.uint8)[: part.size]
        signed = np.where(draw & 0x80, -part, part)
        total += np.bincount(draw & (WIDTH - 1), weights=signed, minlength=WIDTH)
    with np.errstate(over="ignore", invalid="ignore"):
        return total.astype("<f4")


def agreement(sketches: Any, tolerance: float) -> Any:
    """Which rows are alike: bool (n, n), from float32 (n, shards, WIDTH).

    Those whose distance is at most ``tolerance`` times the smaller of their norms, all estimated.
    Rows that are not finite are like none, not even themselves.
    """
    rows = np.asarray(sketches, dtype=np.float64).reshape(len(sketches), -1)
    with np.errstate(invalid="ignore", over="ignore"):
        norms = (rows * rows).sum(axis=1)
        apart = np.stack([((rows - row) ** 2).sum(axis=1) for row in rows])
        smaller = np.minimum(norms, norms[:, None])
        return (apart <= tolerance**2 * smaller) & np.isfinite(norms)
