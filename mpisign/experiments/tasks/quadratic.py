"""The quadratic of the paper: what noise alone does to a vote."""

from __future__ import annotations

import numpy as np
import torch

from mpisign.experiments.cell import Cell
from mpisign.experiments.tasks.base import Task


class Quadratic(Task):
    """x'x / 2 in fp64, gradient x + N(0, 1): Bernstein et al. 2019, majority vote, figure 1."""

    def __init__(self, cell: Cell, rank: int, dimension: int = 1000) -> None:
        assert cell.steps is not None
        self.steps = cell.steps
        self._rng = np.random.default_rng(cell.seed)
        self._x = torch.nn.Parameter(torch.from_numpy(self._rng.standard_normal(dimension)))
        self._size, self._row = cell.ranks, cell.ranks - 1 - rank
        self._averaged = cell.batch_size
        self.named = [("x", self._x)]

    def backward(self, step: int) -> torch.Tensor:
        blocks = [self._rng.standard_normal((self._size, len(self._x)))[self._row]]
        blocks += [
            self._rng.standard_normal((self._size, len(self._x)))[self._row]
            for _ in range(self._averaged - 1)
        ]
        noise = sum(blocks[1:], blocks[0]) / self._averaged
        self._x.grad = self._x.detach() + torch.from_numpy(noise)
        return self._value()

    def evaluate(self) -> tuple[float, float]:
        value = float(self._value())
        return value, value

    def _value(self) -> torch.Tensor:
        x = self._x.detach()
        return 0.5 * x.dot(x)
