"""The classifiers: small enough for two cores, large enough to have dead units and ties."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar

import torch
from torch import nn

from mpisign.experiments.tasks.base import Named

_HIDDEN = (256, 128)
_SMALL = 16  # pixels a side up to which a perceptron does

Net = TypeVar("Net", bound=nn.Module)


def seeded(seed: int, make: Callable[[], Net]) -> Net:
    """``make()`` with torch's generator at ``seed``: the same parameters on every rank."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def build(shape: tuple[int, int, int], seed: int) -> nn.Module:
    """A classifier of ten classes for images of ``shape`` (channels, height, width)."""
    channels, height, width = shape
    if max(height, width) <= _SMALL:
        return seeded(seed, lambda: perceptron(channels * height * width, _HIDDEN))
    return seeded(seed, lambda: convolutional(channels, height, width))


def perceptron(inputs: int, hidden: Sequence[int]) -> nn.Module:
    """Linear layers with ReLU between them, ten outputs."""
    layers: list[nn.Module] = [nn.Flatten()]
    for a, b in pairwise([inputs, *hidden]):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear([inputs, *hidden][-1], 10))


def lenet() -> nn.Module:
    """LeNet-5 for images (n, 1, 28, 28), with ReLU and maxima: 61,706 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        perceptron(16 * 5 * 5, (120, 84)),
    )


def convolutional(channels: int, height: int, width: int) -> nn.Module:
    """Two convolutions with ReLU and maxima, a hidden layer of 128, ten outputs."""
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * (height // 4) * (width // 4), 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def digest(model: nn.Module | Named) -> str:
    """SHA-256 of all parameters' bytes, in hexadecimal: equal if and only if they are."""
    named = list(model.named_parameters()) if isinstance(model, nn.Module) else model
    sha = hashlib.sha256()
    for _, p in named:
        sha.update(p.detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()


@torch.no_grad()
def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of ``images`` (n, c, h, w), float32 or bytes, that get their label, in [0, 1]."""
    bytes_ = images.dtype == torch.uint8
    right = sum(
        int((model(x.float() / 255 if bytes_ else x).argmax(dim=1) == y).sum())
        for x, y in zip(images.split(1000), labels.split(1000), strict=True)
    )
    return right / len(labels)
