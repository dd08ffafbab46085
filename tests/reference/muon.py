"""SignMuon: the polar factor of a momentum by Newton-Schulz, and that of a vote, bit for bit.

Source: Mishra et al. 2026, SignMuon (arXiv 2605.16311); the iteration: Jordan et al. 2024, Muon.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from reference.compressors import widened

MUON = (3.4445, -4.7750, 2.0315)
_PLACES = 2.0**24


def newton_schulz(
    x: Any, steps: int = 5, coefficients: Sequence[float] = MUON, eps: float = 1e-7
) -> Any:
    """X / (|X|_F + eps), then X <- a X + (b X X' + c (X X')^2) X, in fp64."""
    a, b, c = coefficients
    x = np.asarray(x, np.float64)
    x = x / (np.linalg.norm(x) + eps)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def muon(grad: Any, momentum: Any, shape: Sequence[int], options: Any) -> tuple[Any, Any]:
    """m = b m + (1 - b) g; sends the sign of m's polar factor, or of b m + (1 - b) g's (Nesterov).

    Returns (the polar factor, m). What is not finite does not enter m; NaN is sent as NaN.
    """
    g, b = widened(grad), np.float32(options.momentum)
    rest = np.float32(1 - options.momentum)
    new = b * momentum + rest * g
    m = np.where(np.isfinite(new), new, momentum)
    ahead = b * m + rest * g if options.nesterov else m
    sent = polar(np.where(np.isfinite(ahead), ahead, m), shape, options)
    return np.where(np.isnan(new), np.float32("nan"), sent), m


def polar(x: Any, shape: Sequence[int], options: Any) -> Any:
    """The polar factor of a flat tensor as (out, in k k), flat."""
    rows = np.reshape(x, (shape[0], -1))
    return newton_schulz(rows, options.steps, options.coefficients, options.eps).reshape(-1)


def exact_polar(
    votes: Any, steps: int = 5, coefficients: Sequence[float] = MUON, eps: float = 1e-7
) -> Any:
    """The same of +1, -1 and 0: X and all products are whole numbers of 2^-24, multiplied as int64.

    On the smaller Gram matrix: of a tall one transposed.
    """
    a, b, c = coefficients
    votes = np.asarray(votes, np.float64)
    if votes.shape[0] > votes.shape[1]:
        return exact_polar(votes.T, steps, coefficients, eps).T
    x = _rounded(votes / (np.sqrt(np.float64(np.count_nonzero(votes))) + eps))
    for _ in range(steps):
        gram = _times(x, x.T)
        factor = gram * b
        if c:
            factor = factor + _times(gram, gram) * c
        x = _rounded(x * a + _times(_rounded(factor), x))
    return x


def _rounded(x: Any) -> Any:
    return np.rint(x * _PLACES) / _PLACES


def _times(x: Any, y: Any) -> Any:
    whole = [np.rint(z * _PLACES).astype(np.int64) for z in (x, y)]
    return _rounded((whole[0] @ whole[1]).astype(np.float64) / _PLACES**2)
