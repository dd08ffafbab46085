"""The model: a perceptron on digits as wide as the parameters that are asked for."""

from __future__ import annotations

from bisect import bisect_left

from torch import nn

from mpisign.experiments import model

PIXELS, CLASSES = 64, 10


def count(units: int, layers: int) -> int:
    """Parameters of ``layers`` hidden layers of ``units`` each, weights and biases."""
    inner = (layers - 1) * (units * units + units)
    return PIXELS * units + units + inner + units * CLASSES + CLASSES


def width(parameters: int, layers: int) -> int:
    """Units of each of ``layers`` hidden layers, so that there are ``parameters`` or a few more."""
    return 1 + bisect_left(range(1, parameters), parameters, key=lambda n: count(n, layers))


def build(parameters: int, layers: int, init: str, seed: int) -> nn.Module:
    """A perceptron, ``init`` "he" or "torch". One seed gives the same parameters on every rank."""

    def make() -> nn.Module:
        net = model.perceptron(PIXELS, [width(parameters, layers)] * layers)
        for part in net.modules() if init == "he" else ():
            # With nn.Linear's own start, deep perceptrons hardly learn by SGD.
            if isinstance(part, nn.Linear):
                nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
                nn.init.zeros_(part.bias)
        return net

    return model.seeded(seed, make)
