"""The interface between the training loop and what is learned."""

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
    #: What ``named`` are the parameters of, if it is a network.
    net: Any = None
    #: What a hostile rank makes of a batch, images and labels, NumPy, before it learns from it.
    spoil: Callable[[Any, Any], tuple[Any, Any]] | None = None

    def loss(self, step: int) -> torch.Tensor:
        """The loss of this rank's next batch, a scalar with its graph."""
        raise NotImplementedError

    def backward(self, step: int) -> torch.Tensor:
        """Adds the gradients of the next batch to ``.grad``; returns its loss, detached."""
        loss = self.loss(step)
        loss.backward()
        return loss.detach()

    @abstractmethod
    def evaluate(self) -> tuple[float, float]:
        """The metric that rates are chosen by, and the one that is reported."""

    def more(self) -> dict[str, Any]:
        """Further figures of the trained model, by name."""
        return {}
