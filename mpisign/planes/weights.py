"""Weights of ranks, as the integers that bit-sliced counters can add."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

_LARGEST_SUM = (1 << 31) - 1
_FINE = 1 << 24  # what the largest weight becomes if there is no exact scale


def integer_weights(
    function: str, weights: Sequence[float] | npt.ArrayLike, rows: int
) -> npt.NDArray[np.uint32]:
    """One weight a row, uint32 (rows,), in the ratios of ``weights``, their sum below 2^31.

    Non-negative integers or floats. Floats are fractions: they are scaled to integers exactly where
    the sum then stays below 2^31, else to 24 bits of the largest (less for many rows), each rounded
    to nearest. The same numbers give the same integers on every rank.

    Raises ValueError for another number of weights, and for one that is negative or not finite.
    """
    values = _listed(function, weights)
    if len(values) != rows:
        raise ValueError(
            f"{function}: weights must be one for each of {rows} rows, got {len(values)}"
        )
    for w in values:
        if not 0 <= w < float("inf"):
            raise ValueError(f"{function}: weights must be finite and not negative, got {w!r}")
    exact = [Fraction(w) for w in values]
    common = math.lcm(*(f.denominator for f in exact))
    scaled = [int(f * common) for f in exact]
    divisor = int(np.gcd.reduce([0, *scaled], dtype=object)) or 1
    scaled = [n // divisor for n in scaled]
    if sum(scaled) > _LARGEST_SUM:
        fine = min(_FINE, _LARGEST_SUM // (2 * rows))
        largest = max(exact)
        scaled = [round(f * fine / largest) for f in exact]
    return np.array(scaled, dtype=np.uint32)


def _listed(function: str, weights: Any) -> list[Any]:
    try:
        array = np.asarray(weights.tolist() if hasattr(weights, "tolist") else weights)
        values = array.tolist()
    except (TypeError, ValueError):
        values = None
    if not isinstance(values, list) or array.ndim != 1 or array.dtype.kind not in "buif":
        raise ValueError(f"{function}: weights must be a list of numbers, got {weights!r}")
    return values
