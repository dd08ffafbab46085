"""The interface between a training and what is learned."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch

Named = list[tuple[str, torch.nn.Parameter]]


class Task(ABC):
    """One rank's replica, its share of the data, and what is held out."""

    #: Replicas start equal: names and tensors, in one order on all ranks.
    named: Named
    steps: int
    #: What becomes of a batch, images and labels, NumPy, before it is learned from.
    spoil: Callable[[Any, Any], tuple[Any, Any]] | None = None

    @abstractmethod
    def backward(self, step: int) -> torch.Tensor:
        """The gradients of the next batch of this rank, added to ``.grad``; its loss, a scalar."""

    @abstractmethod
    def evaluate(self) -> tuple[float, float]:
        """The metric on what rates are chosen by, and on what is told."""

    def more(self) -> dict[str, Any]:
        """What else is told of the end, by name: figures, or lists of them."""
        return {}
