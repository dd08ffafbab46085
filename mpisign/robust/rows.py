"""What every robust rule is made of, on rows (n, d), one a rank: flags, distances, mixtures, order.

NumPy and CuPy arrays and torch tensors (CPU, CUDA) of float32, float64, float16 or bfloat16. Sums
are float64, whatever the rows are; what comes out has the rows' dtype. Results do not depend on
the number of threads. Nothing here looks for rows that are not finite but ``finite``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mpisign import arrays
from mpisign.robust import expressions


def finite(X: Any) -> np.ndarray[Any, Any]:
    """Which rows are all finite: NumPy bool (n,).

    Of float64 also: all below 2^480, so that no squared distance overflows. Raises TypeError,
    ValueError if ``X`` is no (n, d) array of floats.
    """
    _view("finite", X)
    return expressions.finite(X)


def squared_distances(X: Any) -> np.ndarray[Any, Any]:
    """Squared Euclidean distances: NumPy float64 (n + 1, n + 1), row n being the origin.

    So [i, n] is the squared norm of row i. Sums of squared differences in float64, never |a|^2 +
    |b|^2 - 2 a b, which cancels. Symmetric, 0 on the diagonal. Parts over columns add up to the
    whole. Errors: as ``finite``'s.
    """
    _view("squared_distances", X)
    return expressions.squared_distances(X)


def mix(A: Any, X: Any) -> Any:
    """Weighted sums of rows, A X: (m, d), framework, device and dtype of ``X``.

    ``A``: (m, n), finite, taken as float64 in host memory. A row of ``X`` whose coefficients are
    all 0 is not read, so that nothing in it matters. Products and sums are float64, rounded once.
    Raises TypeError, ValueError for arguments that do not fit.
    """
    x = _view("mix", X)
    a = np.ascontiguousarray(arrays.host(A) if hasattr(A, "shape") else A, dtype=np.float64)
    if a.ndim != 2 or a.shape[1] != x.shape[0]:
        raise ValueError(f"mix: A must have shape (m, {x.shape[0]}), got {a.shape}")
    if not np.isfinite(a).all():
        raise ValueError("mix: A must be finite, got NaN or infinity")
    out = arrays.empty((a.shape[0], x.shape[1]), x.dtype, like=x)
    expressions.mix(a, X, out)
    return out


def sorted_mean(X: Any, low: int, high: int) -> Any:
    """The mean of each coordinate's order statistics low to high - 1 (from 0): (d,) like ``X``.

    The median is the middle one, or the middle two; a trimmed mean leaves f out at either end.
    Rows must be finite. A zero comes out as +0.0. Raises TypeError, ValueError for arguments that
    do not fit.
    """
    x = _view("sorted_mean", X)
    n = x.shape[0]
    if not 0 <= low < high <= n:
        raise ValueError(
            f"sorted_mean: low and high must be 0 <= low < high <= {n} rows, got {low} and {high}"
        )
    out = arrays.empty((x.shape[1],), x.dtype, like=x)
    expressions.sorted_mean(X, low, high, out)
    return out


def nearest_to_median(X: Any, k: int) -> Any:
    """The mean of the k values of each coordinate nearest to its median: (d,) like ``X``.

    The median of an even number is the mean of the middle two. Of two values equally near the
    lower one is taken. Rows must be finite. A zero comes out as +0.0. Raises TypeError, ValueError
    for arguments that do not fit.
    """
    x = _view("nearest_to_median", X)
    if not 1 <= k <= x.shape[0]:
        raise ValueError(f"nearest_to_median: k must be 1 to {x.shape[0]} rows, got {k}")
    out = arrays.empty((x.shape[1],), x.dtype, like=x)
    expressions.nearest_to_median(X, k, out)
    return out


def _view(function: str, x: Any) -> arrays.View:
    v = arrays.view_floats(function, "X", x)
    if len(v.shape) != 2:
        raise ValueError(f"{function}: X must have shape (n, d), got {v.shape}")
    return v
