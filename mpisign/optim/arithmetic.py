"""Adam's arithmetic: the same bits on every processor."""

from __future__ import annotations

import numpy as np
import torch


def mix(m: torch.Tensor, b: float, g: torch.Tensor) -> torch.Tensor:
    """b m + (1 - b) g in float32, each product rounded: the same bits on every processor."""
    return (m * b).add_(g.float() * (1.0 - b))


def denominator_of(v: torch.Tensor, eps: float) -> torch.Tensor:
    """sqrt(v) + eps."""
    # On a CPU torch.sqrt is MKL's: one root in five is not the nearest float32, and which depends
    # on the processor.
    root = v.sqrt() if v.device.type != "cpu" else torch.from_numpy(np.asarray(np.sqrt(v.numpy())))
    return root.add_(eps)


def move(p: torch.Tensor, update: torch.Tensor, lr: float, decay: float) -> None:
    """p -= lr (update + decay p); ``update`` is written over."""
    if decay:
        update = update.add_(p.float() * decay)
    p.sub_(update.mul_(lr))
