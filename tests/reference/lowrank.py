"""Low-rank training: a weight's factors, what they compute, and what becomes of sums of gradients.

Source: Wang et al. 2021, Pufferfish, arXiv 2103.03936, sections 2 and 3.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def factors(w: Any, rank: int) -> tuple[Any, Any]:
    """U sqrt(S) (m, r) and sqrt(S) V' (r, n) of a matrix, or of a kernel as (out, in k k)."""
    u, s, vt = np.linalg.svd(w.reshape(len(w), -1), full_matrices=False)
    root = np.sqrt(s[:rank])
    return u[:, :rank] * root, root[:, None] * vt[:rank]


def conv(x: Any, w: Any, stride: int = 1, padding: int = 0) -> Any:
    """(in, h, w) by a kernel (out, in, k, k): (out, h', w')."""
    k = w.shape[-1]
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    rows, columns = ((n - k) // stride + 1 for n in x.shape[1:])
    patches = [
        x[:, i * stride : i * stride + k, j * stride : j * stride + k].ravel()
        for i in range(rows)
        for j in range(columns)
    ]
    return (w.reshape(len(w), -1) @ np.array(patches).T).reshape(-1, rows, columns)


def thin_conv(x: Any, u: Any, v: Any, k: int, stride: int = 1, padding: int = 0) -> Any:
    """k x k to r channels, then 1 x 1."""
    first = conv(x, v.reshape(len(v), -1, k, k), stride, padding)
    return conv(first, u.reshape(*u.shape, 1, 1))


def lstm(xs: Any, gates_x: Any, gates_h: Any, bias: Any) -> Any:
    """The hidden states (t, h); ``gates_x``, ``gates_h``: of i, f, g, o the pair (U, V)."""
    h = c = np.zeros(len(gates_h[0][0]))
    out = []
    for x in xs:
        both = zip(gates_x, gates_h, np.split(bias, 4), strict=True)
        i, f, g, o = (ux @ (vx @ x) + uh @ (vh @ h) + b for (ux, vx), (uh, vh), b in both)
        c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
        h = _sigmoid(o) * np.tanh(c)
        out.append(h)
    return np.array(out)


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def of_sum(s: Any, u: Any, v: Any) -> tuple[Any, Any]:
    """A sum of gradients of W = U V, as one of U's and V's: the chain rule."""
    s = s.reshape(len(u), -1)
    return s @ v.T, u.T @ s


def of_squares(q: Any, u: Any, v: Any) -> tuple[Any, Any]:
    """A sum of squares, as if the coordinates of gradients were independent."""
    return of_sum(q, u * u, v * v)
