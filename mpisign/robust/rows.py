"""The operations of robust rules on rows (n, d), one per rank: flags, distances, mixtures, order.

NumPy and CuPy arrays and torch tensors (CPU, CUDA) of float32, float64, float16 or bfloat16. Sums
are float64; results have the rows' dtype. Host memory is read once, by the host kernels
(kernels/rows.c, row_distances.c, row_mix.c, robust.c), whose bits depend neither on the number of
threads nor on the instruction set; rows that are not contiguous are copied. On a device:
``expressions``.

All but ``finite`` expect finite rows, but survive others: ``flags``, a NumPy bool (n,), is filled
with what ``finite`` would return for the rows read, at no extra cost. So a rule may compute first
and look at the flags afterwards.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mpisign import _kernels
from mpisign.backend import arrays, threads
from mpisign.robust import expressions

Flags = np.ndarray[Any, np.dtype[np.bool_]]
Floats = np.ndarray[Any, np.dtype[np.float64]]


def finite(X: Any) -> Flags:
    """Which rows are all finite: NumPy bool (n,).

    float64 must also be below 2^480, so that no squared distance overflows. Raises TypeError,
    ValueError if ``X`` is no (n, d) array of floats.
    """
    x = _view("finite", X)
    flags = np.ones(x.shape[0], dtype=bool)
    if x.device != "cpu":
        return expressions.finite(X)
    place, _owner = _place(x)
    _kernels.rows_finite(place, arrays.address(flags), threads.for_work(x.length))
    return flags


def squared_distances(X: Any, *, flags: Flags | None = None) -> Floats:
    """Squared Euclidean distances: NumPy float64 (n + 1, n + 1), row n being the origin.

    So [i, n] is the squared norm of row i. Sums of squared differences in float64, never |a|^2 +
    |b|^2 - 2 a b, which cancels. Symmetric, 0 on the diagonal. Parts over columns add up to the
    whole. Errors: as ``finite``'s, and ValueError for ``flags`` that do not fit.
    """
    x = _view("squared_distances", X)
    flags = _flags("squared_distances", flags, x)
    if x.device != "cpu":
        flags[:] = expressions.finite(X)
        return expressions.squared_distances(X)
    n = x.shape[0]
    pairs = _distances(x, 0, n * (n + 1) // 2, flags)
    out = np.zeros((n + 1, n + 1))
    upper = np.triu_indices(n + 1, 1)
    out[upper] = pairs
    out.T[upper] = pairs
    return out


def squared_norms(X: Any, *, flags: Flags | None = None) -> Floats:
    """Squared Euclidean norms: NumPy float64 (n,), the last column of ``squared_distances``."""
    x = _view("squared_norms", X)
    flags = _flags("squared_norms", flags, x)
    if x.device != "cpu":
        flags[:] = expressions.finite(X)
        return expressions.squared_norms(X)
    return _distances(x, 1, x.shape[0], flags)


def mix(A: Any, X: Any, *, flags: Flags | None = None) -> Any:
    """Weighted sums of rows, A X: (m, d), framework, device and dtype of ``X``.

    ``A``: (m, n), finite, taken as float64 in host memory. A row of ``X`` whose coefficients are
    all 0 is not read, so that nothing in it matters (its flag is True). Products and sums are
    float64, in the order of the rows, rounded to the dtype at the end; coefficients that are all
    equal multiply the sum. Raises TypeError, ValueError for arguments that do not fit.
    """
    x = _view("mix", X)
    a = np.ascontiguousarray(arrays.host(A) if hasattr(A, "shape") else A, dtype=np.float64)
    if a.ndim != 2 or a.shape[1] != x.shape[0]:
        raise ValueError(f"mix: A must have shape (m, {x.shape[0]}), got {a.shape}")
    if not np.isfinite(a).all():
        raise ValueError("mix: A must be finite, got NaN or infinity")
    flags = _flags("mix", flags, x)
    out = arrays.empty((a.shape[0], x.shape[1]), x.dtype, like=x)
    used = a.any(axis=0)
    if x.device != "cpu":
        flags[:] = True
        flags[used] = expressions.finite(X)[used]
        expressions.mix(a, X, out)
        return out
    place, _owner = _place(x)
    row, column = map(np.ascontiguousarray, np.nonzero(a))
    ends, values = np.cumsum(np.bincount(row, minlength=len(a))), a[row, column]
    _kernels.rows_mix(
        place,
        (
            len(a),
            arrays.address(ends),
            arrays.address(column),
            arrays.address(values),
            arrays.address(used),
        ),
        arrays.address(out),
        arrays.address(flags),
        threads.for_work(len(row) * x.shape[1]),
    )
    return out


def sorted_mean(X: Any, low: int, high: int, *, flags: Flags | None = None) -> Any:
    """The mean of each coordinate's order statistics low to high - 1 (from 0): (d,) like ``X``.

    The median is the middle one, or the middle two; a trimmed mean leaves f out at either end.
    A zero comes out as +0.0. Raises TypeError, ValueError for arguments that do not fit.
    """
    x = _view("sorted_mean", X)
    n = x.shape[0]
    if not 0 <= low < high <= n:
        raise ValueError(
            f"sorted_mean: low and high must be 0 <= low < high <= {n} rows, got {low} and {high}"
        )
    return _ordered("sorted_mean", X, x, (low, high), (low, high, 0), flags)


def nearest_to_median(X: Any, k: int, *, flags: Flags | None = None) -> Any:
    """The mean of the k values of each coordinate nearest to its median: (d,) like ``X``.

    The median of an even number is the mean of the middle two. Of two values equally near the
    lower one is taken. A zero comes out as +0.0. Raises TypeError, ValueError for arguments that do
    not fit. The second half of Bulyan (El Mhamdi 2018); Meamed (Xie 2018).
    """
    x = _view("nearest_to_median", X)
    if not 1 <= k <= x.shape[0]:
        raise ValueError(f"nearest_to_median: k must be 1 to {x.shape[0]} rows, got {k}")
    return _ordered("nearest_to_median", X, x, (k,), (0, 0, k), flags)


def _distances(x: arrays.View, norms: int, pairs: int, flags: Flags) -> Floats:
    out = np.zeros(pairs)
    place, _owner = _place(x)
    amount = pairs * x.shape[1]
    _kernels.rows_distances(
        place, norms, arrays.address(out), arrays.address(flags), threads.for_work(amount)
    )
    return out


def _ordered(
    function: str,
    X: Any,
    x: arrays.View,
    arguments: tuple[int, ...],
    which: tuple[int, int, int],
    flags: Flags | None,
) -> Any:
    """One of the two means of order statistics, on a device by ``expressions``."""
    out = arrays.empty((x.shape[1],), x.dtype, like=x)
    flags = _flags(function, flags, x)
    if x.device != "cpu":
        flags[:] = expressions.finite(X)
        getattr(expressions, function)(X, *arguments, out)
        return out
    place, _owner = _place(x)
    count = threads.for_work(x.length)
    _kernels.rows_order(place, *which, arrays.address(out), arrays.address(flags), count)
    return out


def _view(function: str, x: Any) -> arrays.View:
    v = arrays.view_floats(function, "X", x)
    if len(v.shape) != 2:
        raise ValueError(f"{function}: X must have shape (n, d), got {v.shape}")
    return v


def _flags(function: str, flags: Flags | None, x: arrays.View) -> Flags:
    n = x.shape[0]
    if flags is None:
        return np.ones(n, dtype=bool)
    if flags.dtype != np.bool_ or flags.shape != (n,) or not flags.flags.c_contiguous:
        raise ValueError(
            f"{function}: flags must be contiguous bool ({n},), got {flags.dtype} {flags.shape}"
        )
    return flags


def _place(x: arrays.View) -> tuple[tuple[int, int, int, int, int], Any]:
    """Rows in host memory as (address, bytes between rows, n, d, dtype code), and their owner."""
    n, d = x.shape
    stride, item = x.strides
    owner, address = x.owner, x.address
    if d > 1 and item != arrays.itemsize(x.dtype):
        if x.is_torch:
            owner = x.owner.detach().contiguous()
        else:
            owner = np.ascontiguousarray(x.owner)
        address, stride = arrays.address(owner), d * arrays.itemsize(x.dtype)
    return (address, stride, n, d, arrays.FLOAT_CODES[x.dtype]), owner
