"""Robust rules as their papers write them: a few lines of NumPy each, on float64 rows."""

from __future__ import annotations

import numpy as np


def mean(X):
    return X.mean(axis=0)


def median(X):
    return np.median(X, axis=0)


def trimmed_mean(X, f):
    return np.sort(X, axis=0)[f : len(X) - f].mean(axis=0)


def meamed(X, f):
    out = []
    for column in X.T:
        away = np.abs(column - np.median(column))
        out.append(column[np.lexsort((column, away))][: len(X) - f].mean())
    return np.array(out)


def squared_distances(X):
    return ((X[:, None, :] - X[None, :, :]) ** 2).sum(axis=2)


def scores(X, f, neighbours=1, squared=True):
    D = squared_distances(X) if squared else np.sqrt(squared_distances(X))
    k = max(len(X) - f - neighbours, 1)
    return np.array([np.sort(np.delete(D[i], i))[:k].sum() for i in range(len(X))])


def krum(X, f, **variant):
    return X[np.argmin(scores(X, f, **variant))]


def multi_krum(X, f, m=None, **variant):
    best = np.argsort(scores(X, f, **variant), kind="stable")[: m or len(X) - f]
    return X[best].mean(axis=0)


def bulyan(X, f):
    left, chosen = X, []
    for _ in range(len(X) - 2 * f):
        i = np.argmin(scores(left, f))
        chosen.append(left[i])
        left = np.delete(left, i, axis=0)
    return meamed(np.array(chosen), 2 * f)


def geometric_median(X, nu=0.1, T=3):
    z = np.zeros(X.shape[1])
    for _ in range(T):
        b = 1 / np.maximum(np.linalg.norm(X - z, axis=1), nu)
        z = b @ X / b.sum()
    return z


def centered_clipping(X, m=None, L=1, tau=100.0):
    v = np.zeros(X.shape[1]) if m is None else m
    for _ in range(L):
        away = np.linalg.norm(X - v, axis=1)
        v = v + np.mean((X - v) * np.minimum(1, tau / np.maximum(away, 1e-300))[:, None], axis=0)
    return v


def nnm(X, f):
    near = np.argsort(squared_distances(X), axis=1, kind="stable")[:, : len(X) - f]
    return X[near].mean(axis=1)


def bucketing(X, s, order):
    return np.array([X[order[i : i + s]].mean(axis=0) for i in range(0, len(X), s)])


def clipping(X, c=2.0):
    norms = np.linalg.norm(X, axis=1)
    return X * np.minimum(1, c / np.maximum(norms, 1e-300))[:, None]
