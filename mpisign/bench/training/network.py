"""The model: a perceptron on digits as wide as the parameters that are asked for."""

from __future__ import annotations

import math

import torch
from torch import nn

PIXELS, CLASSES = 64, 10


def width(parameters: int, layers: int) -> int:
    """Units of each of ``layers`` hidden layers, so that there are ``parameters`` or a few more."""
    square, linear = layers - 1, PIXELS + CLASSES + layers  # count() as a polynomial
    root = math.isqrt(linear * linear + 4 * square * parameters)
    found = max(1, (root - linear) // (2 * square) if square else parameters // (linear + 1))
    while count(found, layers) < parameters:
        found += 1
    return found


def count(units: int, layers: int) -> int:
    """Parameters of ``layers`` hidden layers of ``units`` each, weights and biases."""
    inner = (layers - 1) * (units * units + units)
    return PIXELS * units + units + inner + units * CLASSES + CLASSES


def build(parameters: int, layers: int, init: str, seed: int) -> nn.Module:
    """A perceptron, ``init`` "he" or "torch". One seed gives the same parameters on every rank."""
    units = width(parameters, layers)
    kept = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        parts: list[nn.Module] = [nn.Flatten(), nn.Linear(PIXELS, units), nn.ReLU()]
        for _ in range(layers - 1):
            parts += [nn.Linear(units, units), nn.ReLU()]
        parts.append(nn.Linear(units, CLASSES))
        if init == "he":
            _as_he(parts)
        return nn.Sequential(*parts)
    finally:
        torch.set_rng_state(kept)


def _as_he(parts: list[nn.Module]) -> None:
    """He et al.'s start for ReLU: with nn.Linear's own, deep perceptrons hardly learn by SGD."""
    for part in parts:
        if isinstance(part, nn.Linear):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
            nn.init.zeros_(part.bias)
