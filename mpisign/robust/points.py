"""Points given by coefficients over the rows, and their distances, without reading the rows.

A point is sum c_i x_i with sum c_i = 1, the origin counting as one more row (the last). Differences
of points have coefficients that sum to 0, and then |sum u_i x_i|^2 = u' B u for the inner products
B of the rows as seen from any one of them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mpisign.robust.base import Floats, Needs

#: Where one row is this much further out than another, float64 distances do not tell the angle.
_BLIND = 2.0**46


def inner_products(squared: Floats) -> Floats:
    """B (k, k) of k rows from their squared distances, as seen from the one in their middle.

    The middle: the row whose median distance to the others is smallest, so that rows close to each
    other lose no digits to their common distance from the origin. A row that is more than 2^46
    times as far out as another counts as orthogonal to it: the rounding errors of its distances
    are larger than the product, and one such row would fill the honest ones' products with them.
    """
    middle = int(np.argmin(np.median(squared, axis=1)))
    out = squared[middle]
    products = (out[:, None] + out[None, :] - squared) / 2
    limit = np.sqrt(out)[:, None] * np.sqrt(out)[None, :]
    blind = limit * _BLIND < np.maximum(out[:, None], out[None, :])
    products = np.where(blind, 0.0, np.clip(products, -limit, limit))
    products[np.diag_indices(len(out))] = out
    return products


def squared_between(points: Floats, others: Floats, products: Floats) -> Floats:
    """Squared distances (m, l) between points (m, k) and others (l, k), rows of coefficients."""
    apart = np.empty((len(points), len(others)))
    seen, from_here = others @ products, points @ products
    for i, point in enumerate(points):
        # Coefficients that two points share cancel before they meet what may be large.
        apart[i] = np.einsum("lk,lk->l", others - point, seen - from_here[i])
    return np.maximum(apart, 0.0)


def with_origin(weights: Floats) -> Floats:
    """Points (m + 1, n + 1) of a mixing matrix (m, n), last the origin."""
    m, n = weights.shape
    points = np.zeros((m + 1, n + 1))
    points[:m, :n] = weights
    # Rows that sum to 1 but for rounding do not lean on the origin.
    rest = 1.0 - weights.sum(axis=1)
    points[:m, n] = np.where(np.abs(rest) < 1e-12, 0.0, rest)
    points[m, n] = 1.0
    return points


def squared_mixed(weights: Floats, squared: Floats) -> Floats:
    """Squared distances (m + 1, m + 1) of mixed rows and the origin, as ``Rule.measure``'s."""
    points = with_origin(weights)
    out = squared_between(points, points, inner_products(squared))
    return np.maximum(out, out.T)


def needs_of(steps: int) -> Needs:
    """What ``iterated`` uses; its first step starts at the origin and needs the norms alone."""
    return ("nothing", "norms", "distances")[min(steps, 2)]  # type: ignore[return-value]


def iterated(
    steps: int, step: Callable[[Floats, Floats], Floats], squared: Floats | None, n: int
) -> Floats:
    """Weights (1, n) of the point that ``steps`` steps reach from the origin.

    ``step(v, apart)``: the next point (1, n + 1) from v and its squared distances (n,) to the rows.
    """
    v = np.zeros((1, n + 1))
    v[0, n] = 1.0
    if squared is not None:
        rows, apart = np.eye(n, n + 1), squared[n, :n]
        products = inner_products(squared) if steps > 1 else None
        for i in range(steps):
            if i and products is not None:
                apart = squared_between(v, rows, products)[0]
            v = step(v, apart)
    return v[:, :n]
