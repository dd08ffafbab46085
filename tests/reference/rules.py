"""Robust rules on rows X (n, d), of which f may be hostile, as their papers write them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def mean(X: Any) -> Any:
    """The average: not robust."""
    return X.mean(axis=0)


def median(X: Any) -> Any:
    """The median of each coordinate (Yin et al. 2018, definition 1)."""
    return np.median(X, axis=0)


def trimmed_mean(X: Any, f: int) -> Any:
    """The mean without the f least and f largest of each coordinate (Yin et al., definition 2)."""
    return np.sort(X, axis=0)[f : len(X) - f].mean(axis=0)


def meamed(X: Any, f: int) -> Any:
    """The mean of the n - f values nearest to the median (Xie et al. 2018, definition 8)."""
    away = np.abs(X - np.median(X, axis=0))
    nearest = np.lexsort((X, away), axis=0)[: len(X) - f]  # of two as near, the lower value
    return np.take_along_axis(X, nearest, axis=0).mean(axis=0)


def squared_distances(X: Any) -> Any:
    """|x_i - x_j|^2, (n, n)."""
    return ((X[:, None, :] - X[None, :, :]) ** 2).sum(axis=2)


def scores(X: Any, f: int, neighbours: int = 1, squared: bool = True) -> Any:
    """s(i): the sum over the n - f - ``neighbours`` nearest of |x_i - x_j|^2, or of |x_i - x_j|.

    Source: Blanchard et al. 2017, section 4, where it is n - f - 2; ByzFL takes n - f - 1.
    """
    D = squared_distances(X) if squared else np.sqrt(squared_distances(X))
    k = max(len(X) - f - neighbours, 1)
    return np.array([np.sort(np.delete(D[i], i))[:k].sum() for i in range(len(X))])


def krum(X: Any, f: int, **variant: Any) -> Any:
    """The row of the least score (Blanchard et al. 2017, section 4)."""
    return X[np.argmin(scores(X, f, **variant))]


def multi_krum(X: Any, f: int, m: int | None = None, **variant: Any) -> Any:
    """The mean of the m rows of the least scores, n - f at first (Blanchard et al., section 5)."""
    best = np.argsort(scores(X, f, **variant), kind="stable")[: m or len(X) - f]
    return X[best].mean(axis=0)


def bulyan(X: Any, f: int) -> Any:
    """Krum, n - 2f times, each without the rows chosen before; then meamed(2f) of the chosen.

    Source: El Mhamdi et al. 2018, The hidden vulnerability of distributed learning, section 4.
    """
    left, chosen = X, []
    for _ in range(len(X) - 2 * f):
        i = np.argmin(scores(left, f))
        chosen.append(left[i])
        left = np.delete(left, i, axis=0)
    return meamed(np.array(chosen), 2 * f)


def geometric_median(X: Any, nu: float = 0.1, T: int = 3) -> Any:
    """T steps of smoothed Weiszfeld: z = sum b_i x_i / sum b_i, b_i = 1 / max(nu, |x_i - z|).

    Source: Pillutla et al. 2022, Robust aggregation for federated learning, algorithm 2.
    """
    z = np.zeros(X.shape[1])
    for _ in range(T):
        b = 1 / np.maximum(np.linalg.norm(X - z, axis=1), nu)
        z = b @ X / b.sum()
    return z


def centered_clipping(X: Any, m: Any = None, L: int = 1, tau: float = 100.0) -> Any:
    """L steps of v += mean of (x_i - v) min(1, tau / |x_i - v|), from m (zeros).

    Source: Karimireddy et al. 2021, Learning from history, algorithm 2.
    """
    v = np.zeros(X.shape[1]) if m is None else m
    for _ in range(L):
        away = np.linalg.norm(X - v, axis=1)
        v = v + np.mean((X - v) * np.minimum(1, tau / np.maximum(away, 1e-300))[:, None], axis=0)
    return v


def nnm(X: Any, f: int) -> Any:
    """Each row becomes the mean of the n - f rows nearest to it, itself among them.

    Source: Allouah et al. 2023, Fixing by mixing, algorithm 2.
    """
    near = np.argsort(squared_distances(X), axis=1, kind="stable")[:, : len(X) - f]
    return X[near].mean(axis=1)


def bucketing(X: Any, s: int, order: Any) -> Any:
    """Means of s rows each, rows in a random order (Karimireddy et al. 2022, algorithm 1)."""
    return np.array([X[order[i : i + s]].mean(axis=0) for i in range(0, len(X), s)])


def clipping(X: Any, c: float = 2.0) -> Any:
    """x_i min(1, c / |x_i|)."""
    norms = np.linalg.norm(X, axis=1)
    return X * np.minimum(1, c / np.maximum(norms, 1e-300))[:, None]


def detox(X: Any, groups: Sequence[Sequence[int]], rule: Any) -> Any:
    """``rule`` over one row of each group: that which more than half of its members sent.

    Source: Rajput et al. 2019, DETOX, Algorithm 1; a group without a majority is left out.
    """
    filtered = []
    for group in groups:
        sent = [X[r].tobytes() for r in group]
        filtered += [X[r] for r in group if 2 * sent.count(X[r].tobytes()) > len(group)][:1]
    return rule(np.stack(filtered))
