"""Learning rates of each way; how they were found: docs/measurements.md."""

from __future__ import annotations

import math

from mpisign.bench.training.names import Named

MOMENTUM = 0.9  # of every way: torch's SGD has it where the compressor has none

_AVERAGE = 0.03
_SIGNS = 2e-4
#: Compressors whose result is like an averaged gradient, and who keep no momentum of their own.
_PLAIN = ("ef_sign", "terngrad", "qsgd")
#: Its momentum is a mean of gradients, torch's a sum of 10.
_ONEBIT = 10 * _AVERAGE
_GRID = (0.25, 0.5, 1.0, 2.0, 4.0)


def rate(way: Named) -> float:
    """The learning rate at the start of a way's schedule.

    Tuned for averages and for signum; the others begin where these do.
    """
    if way.compressor == "onebit":
        return _ONEBIT
    return _AVERAGE if not way.ours or way.compressor in _PLAIN else _SIGNS


def momentum(way: Named) -> float:
    """Momentum of the way's torch.optim.SGD: a vote's would sum up to steps of 10 rates."""
    return MOMENTUM if not way.ours or way.compressor in _PLAIN else 0.0


def grid(around: float) -> tuple[float, ...]:
    """What --tune tries."""
    return tuple(float(f"{around * factor:.3g}") for factor in _GRID)


def share(step: int, steps: int) -> float:
    """Of the learning rate at ``step``: half a cosine, from 1 to 0, the same for all ways."""
    return 0.5 * (1.0 + math.cos(math.pi * step / steps))
