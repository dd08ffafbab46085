"""Rows given as an array or a list, as one array."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mpisign.backend import arrays
from mpisign.robust import rows


def stacked(function: str, X: Any | Sequence[Any]) -> Any:
    """X as one array (n, d): itself, or a list of vectors as rows of a new one.

    Raises TypeError for what is no array of floats, ValueError for a wrong shape.
    """
    x: Any = _stack(function, X) if isinstance(X, (list, tuple)) else X
    view = arrays.view_floats(function, "X", x)
    if len(view.shape) != 2:
        raise ValueError(
            f"{function}: X must have shape (n, d) or be a list of n vectors (d,), "
            f"got shape {view.shape}"
        )
    return x.detach() if view.is_torch else x


def _stack(function: str, X: Sequence[Any]) -> Any:
    if not X:
        raise ValueError(f"{function}: X must have at least one row, got an empty list")
    views = [arrays.view_floats(function, f"X[{i}]", x) for i, x in enumerate(X)]
    kinds = {(len(v.shape), v.shape, v.dtype, v.device, v.framework) for v in views}
    if len(kinds) > 1 or len(views[0].shape) != 1:
        raise ValueError(
            f"{function}: X must be a list of vectors of one length, dtype, device and framework, "
            f"got {', '.join(sorted(f'{v.dtype} {v.shape} on {v.device}' for v in views))}"
        )
    if views[0].is_torch:
        import torch

        return torch.stack([x.detach() for x in X])
    if isinstance(X[0], np.ndarray):
        return np.stack(X)
    import cupy

    return cupy.stack(X)


def like_rows(function: str, center: Any, X: Any) -> Any:
    """``center`` in X's dtype; ValueError unless it is of X's framework and has shape (d,)."""
    if arrays.is_torch(center) != arrays.is_torch(X) or tuple(center.shape) != (X.shape[1],):
        raise ValueError(
            f"{function}: m must be a vector ({X.shape[1]},) of X's framework, "
            f"got {type(center).__name__} {tuple(center.shape)}"
        )
    return center.detach().to(X) if arrays.is_torch(X) else center.astype(X.dtype, copy=False)


def copied(x: Any) -> Any:
    """A copy of an array or tensor."""
    return x.detach().clone() if arrays.is_torch(x) else x.copy()


def centered(function: str, X: Any, center: Any) -> Any:
    """X - ``center``, in X's dtype, or in float64 where that overflows."""
    with np.errstate(over="ignore", invalid="ignore"):
        moved = X - like_rows(function, center, X)
    finite = rows.finite(moved)
    if finite.all() or (finite == rows.finite(X)).all():
        return moved
    wide = X.double() if arrays.is_torch(X) else X.astype(np.float64)
    return wide - like_rows(function, center, wide)


def uncentered(function: str, x: Any, center: Any, X: Any) -> Any:
    """``x`` + ``center`` in X's dtype; ``x``: a result of ``centered`` rows."""
    moved = x + like_rows(function, center, x[None])
    if moved.dtype == X.dtype:
        return moved
    return moved.to(X.dtype) if arrays.is_torch(X) else moved.astype(X.dtype)
