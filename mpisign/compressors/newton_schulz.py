"""Polar factors of matrices by Newton-Schulz iterations: in float32, and the same bits anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    import torch

_PLACES: Final = 2.0**24  # an entry of the exact form is a whole number of 1 / _PLACES
_LARGEST: Final = 31.0  # sums of products stay below 32 = 2^5: 2 * 24 + 5 = 53 bits


def orthogonalize(
    matrix: torch.Tensor, steps: int, coefficients: Sequence[float], eps: float
) -> torch.Tensor:
    """About U V' of ``matrix`` = U S V', by ``steps`` of X <- a X + (b X X' + c (X X')^2) X.

    X starts as the matrix over its Frobenius norm + ``eps``. Rows and columns of zeros stay zeros.
    Source: Jordan et al. 2024, Muon; with (1.5, -0.5, 0) Bjorck and Bowie 1971, order 1.

    Args:
        matrix: float32 (m, n), any device.
        steps: Iterations, from 0.
        coefficients: (a, b, c).
        eps: Added to the norm.

    Returns:
        float32 (m, n).

    Example:
        >>> import torch
        >>> orthogonalize(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), 20, (1.5, -0.5, 0.0), 1e-7)
        tensor([[1., 0.],
                [0., 1.]])
    """
    import torch

    a, b, c = coefficients
    # In float64 the norm neither overflows nor underflows, whatever float32 holds.
    x = (matrix.double() / (torch.linalg.vector_norm(matrix, dtype=torch.float64) + eps)).float()
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    with torch.autocast(x.device.type, enabled=False):
        for _ in range(steps):
            gram = x @ x.T
            factor = torch.addmm(gram, gram, gram, beta=b, alpha=c) if c else b * gram
            x = torch.addmm(x, factor, x, beta=a)
    return x.T if tall else x


def exact_polar(
    votes: torch.Tensor, steps: int, coefficients: Sequence[float], eps: float
) -> torch.Tensor:
    """``orthogonalize`` of votes, bit for bit the same on every machine.

    A product of matrices rounds differently with another BLAS, processor or number of threads, and
    replicas must not. So X and its products are rounded to whole numbers of 2^-24, and multiplied
    in float64, which holds every partial sum exactly: their order does not matter. All else is one
    IEEE operation at a time.

    Args:
        votes: (m, n) of +1, -1 and 0, any float dtype, any device.
        steps, coefficients, eps: As ``orthogonalize``; ``largest`` of the coefficients is small.

    Returns:
        float64 (m, n), within about 1e-5 of ``orthogonalize``.

    Example:
        >>> import torch
        >>> exact_polar(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), 20, (1.5, -0.5, 0.0), 1e-7)[0, 0]
        tensor(0.7071, dtype=torch.float64)
    """
    import torch

    a, b, c = coefficients
    x = votes.double()
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    many = int((x != 0).sum())
    x = _rounded(x / (float(np.sqrt(np.float64(many))) + eps))
    with torch.autocast(x.device.type, enabled=False):
        for _ in range(steps):
            gram = _rounded(x @ x.T)
            factor = gram * b
            if c:
                factor = factor + _rounded(gram @ gram) * c
            x = _rounded(x * a + _rounded(_rounded(factor) @ x))
    return x.T if tall else x


def _rounded(x: torch.Tensor) -> torch.Tensor:
    return (x * _PLACES).round() / _PLACES


def largest(steps: int, coefficients: Sequence[float]) -> float:
    """The largest sum of products that ``exact_polar`` may meet, infinity if X diverges.

    Singular values s of X, from [0, 1], become a s + b s^3 + c s^5; a sum of products, whatever
    part of it, is at most the product of two spectral norms.

    Args:
        steps: Iterations.
        coefficients: (a, b, c).

    Example:
        >>> largest(5, (1.5, -0.5, 0.0)) <= 1.0001, largest(5, (9.0, 0.0, 0.0)) > 1e8
        (True, True)
    """
    a, b, c = coefficients
    s: Any = np.linspace(0.0, 1.0, 4097)
    most = 1.0
    with np.errstate(all="ignore"):
        for _ in range(steps):
            top = float(s.max())
            grid = np.linspace(0.0, top, 4097)
            factor = np.abs(b * grid**2 + c * grid**4).max()
            most = max(most, top**4, top**2, factor * top)
            s = np.abs(a * s + b * s**3 + c * s**5)
            if not np.isfinite(s).all() or s.max() > _PLACES:
                return float("inf")
    return float(max(most, s.max()))


def check_bounded(compressor: Any) -> None:
    """ValueError for coefficients under which matrices grow instead of becoming orthogonal."""
    if largest(compressor.steps, compressor.coefficients) > _LARGEST:
        raise ValueError(
            f"{type(compressor).__name__}: coefficients must keep singular values near 1, such as "
            f"(1.5, -0.5, 0), got {compressor.coefficients!r}"
        )
