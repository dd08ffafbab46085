"""Arrays that tests are made of, and what 'equal' means: bit for bit."""

from __future__ import annotations

import numpy as np

#: Lengths around every boundary of bytes, words, blocks and slices.
LENGTHS = [0, 1, 7, 8, 9, 31, 32, 33, 63, 64, 65, 127, 128, 129, 151, 511, 513, 4095, 4096, 4097]


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


def same(a, b):
    """Equal bit for bit, but that any NaN equals any other."""
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    bits = f"u{a.dtype.itemsize}"
    equal = np.ascontiguousarray(a).view(bits) == np.ascontiguousarray(b).view(bits)
    return bool((equal | ((a != a) & (b != b))).all())


def same_lists(a, b):
    """Lists of arrays, each the same as its peer."""
    return all(same(x, y) for x, y in zip(a, b, strict=True))
