"""What ``rows`` computes, in expressions of NumPy, CuPy and torch: for rows on a CUDA device.

Rows are (n, d), checked by ``rows``. A block of columns at a time, so that the float64 copies stay
small; everything is enqueued, and only ``finite`` and ``squared_distances`` wait for the device.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from mpisign.backend import arrays

#: A float64 coordinate from here on counts as not finite: squares of differences could overflow.
LARGEST = 2.0**480

_BLOCK = 1 << 22  # coordinates of all rows together that are copied at a time


def finite(x: Any) -> np.ndarray[Any, Any]:
    """bool (n,) in host memory: see ``rows.finite``."""
    limit = LARGEST if arrays.view("finite", "X", x).dtype == "float64" else float("inf")
    flags = [(abs(block) < limit).all(1) for _, block in _blocks(x)]
    found = np.ones(len(x), dtype=bool)
    for flag in flags:
        found &= arrays.host(flag)
    return found


def squared_distances(x: Any) -> np.ndarray[Any, Any]:
    """float64 (n + 1, n + 1) in host memory: see ``rows.squared_distances``."""
    n = len(x)
    out = np.zeros((n + 1, n + 1))
    for _, block in _blocks(x):
        wide = _as(block, "float64")
        parts = []
        for i in range(n):
            apart = wide[i + 1 :] - wide[i]
            parts += [(apart * apart).sum(1), (wide[i] * wide[i]).sum(0)[None]]
        if parts:
            out[np.triu_indices(n + 1, 1)] += arrays.host(_module(x).concatenate(parts))
    return out + out.T


def squared_norms(x: Any) -> np.ndarray[Any, Any]:
    """float64 (n,) in host memory: see ``rows.squared_norms``."""
    out = np.zeros(len(x))
    for _, block in _blocks(x):
        wide = _as(block, "float64")
        out += arrays.host((wide * wide).sum(1))
    return out


def mix(a: np.ndarray[Any, Any], x: Any, out: Any) -> None:
    """a (m, n) times x to ``out``: see ``rows.mix``."""
    used = np.flatnonzero(a.any(axis=0))
    weights = _like(a[:, used], x)
    for columns, block in _blocks(x):
        out[:, columns] = _back(weights @ _as(block[_like(used, x)], "float64"), out)


def sorted_mean(x: Any, low: int, high: int, out: Any) -> None:
    """To ``out``: see ``rows.sorted_mean``."""
    for columns, block in _blocks(x):
        between = _as(_sorted(block)[low:high], "float64")
        out[columns] = _back(between.sum(0) / (high - low) + 0.0, out)


def nearest_to_median(x: Any, k: int, out: Any) -> None:
    """To ``out``: see ``rows.nearest_to_median``."""
    n = len(x)
    for columns, block in _blocks(x):
        s = _as(_sorted(block), "float64")
        median = (s[(n - 1) // 2] + s[n // 2]) * 0.5
        # The k nearest of sorted values are a window, which moves on while that brings nearer ones.
        start = (s[k:] - median < median - s[: n - k]).sum(0)
        place = _like(np.arange(n)[:, None], x)
        inside = (place >= start) & (place < start + k)
        zero = s[:1] * 0.0
        out[columns] = _back(_module(x).where(inside, s, zero).sum(0) / k + 0.0, out)


def _blocks(x: Any) -> Iterator[tuple[slice, Any]]:
    n, d = x.shape
    step = max(1, _BLOCK // max(1, n))
    for first in range(0, d, step):
        columns = slice(first, min(first + step, d))
        block = x[:, columns]
        name = str(block.dtype).removeprefix("torch.")
        yield columns, _as(block, "float32") if name in ("float16", "bfloat16") else block


def _module(x: Any) -> Any:
    if arrays.is_torch(x):
        return sys.modules["torch"]
    return np if isinstance(x, np.ndarray) else sys.modules["cupy"]


def _as(x: Any, dtype: str) -> Any:
    return x.to(getattr(_module(x), dtype)) if arrays.is_torch(x) else x.astype(dtype)


def _back(x: Any, out: Any) -> Any:
    return x.to(out.dtype) if arrays.is_torch(x) else x.astype(out.dtype)


def _sorted(x: Any) -> Any:
    return x.sort(dim=0).values if arrays.is_torch(x) else _module(x).sort(x, axis=0)


def _like(host: np.ndarray[Any, Any], x: Any) -> Any:
    """A host array in ``x``'s framework, on its device."""
    if arrays.is_torch(x):
        return _module(x).as_tensor(host, device=x.device)
    return _module(x).asarray(host)
