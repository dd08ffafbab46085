"""scikit-learn's digits by a perceptron."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from mpisign.attacks.backdoor import Backdoor
from mpisign.detox import Groups, GroupSampler
from mpisign.study.cell import Cell
from mpisign.study.partition import dirichlet
from mpisign.study.tasks.base import Task
from mpisign.training import data, model
from mpisign.training.errors import SettingsError

#: Of the training images: rates are chosen by these, no rank trains on them.
_VALIDATION = 248
_DEALT = ("once", "anew")


class Digits(Task):
    """1,100 images to learn from, 248 to choose rates by, 449 to test with; ``hidden`` layers.

    ``cell.dirichlet`` None: every rank gets each ``ranks``-th image; else labels are spread by
    ``partition.dirichlet``. ``dealt`` "anew": images are dealt to ranks anew in every epoch, by a
    ``GroupSampler``, as they always are to ``groups``, which may be drawn anew then.
    """

    def __init__(
        self,
        cell: Cell,
        rank: int,
        hidden: Sequence[int] = (64,),
        dealt: str = "once",
        groups: Groups | None = None,
    ) -> None:
        dataset = _digits()
        if dealt not in _DEALT:
            raise SettingsError(f"dealt: expected one of {', '.join(_DEALT)}, got {dealt!r}")
        if dealt == "anew" and groups is None:
            groups = Groups.of(cell.ranks, rank, redundancy=1, placement="packed")
        if groups is None:
            images, labels = _shard(cell, rank)
            length = len(labels)
            self._feed = data.batches(images, labels, cell.batch_size, cell.seed, rank)
        else:
            length = (len(dataset.train_labels) - _VALIDATION) // len(groups)
            self._feed = _of_group(cell, groups)
        self.steps = cell.steps or (cell.epochs or 1) * max(1, length // cell.batch_size)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(cell.seed)
            self._net = perceptron(64, hidden)
        self.named = list(self._net.named_parameters())
        self._held_out = [
            (torch.from_numpy(images), torch.from_numpy(labels))
            for images, labels in (
                (dataset.train_images[-_VALIDATION:], dataset.train_labels[-_VALIDATION:]),
                (dataset.test_images, dataset.test_labels),
            )
        ]

    def backward(self, step: int) -> torch.Tensor:
        images, labels = next(self._feed)
        if self.spoil is not None:
            images, labels = self.spoil(images, labels)
        loss = nn.functional.cross_entropy(
            self._net(torch.from_numpy(images)), torch.from_numpy(labels)
        )
        loss.backward()
        return loss.detach()

    def evaluate(self) -> tuple[float, float]:
        validation, test = (model.accuracy(self._net, *part) for part in self._held_out)
        return validation, test

    def more(self) -> dict[str, Any]:
        images, labels = self._held_out[1]
        own = [labels == digit for digit in range(10)]
        recall = [round(model.accuracy(self._net, images[o], labels[o]), 4) for o in own]
        return {"recall": recall, "backdoor": round(Backdoor().accuracy(self._net), 4)}


@lru_cache(maxsize=1)
def _digits() -> data.Dataset:
    return data.digits()


def _shard(cell: Cell, rank: int) -> tuple[data.Images, data.Labels]:
    dataset = _digits()
    images = dataset.train_images[:-_VALIDATION]
    labels = dataset.train_labels[:-_VALIDATION]
    length = len(labels) // cell.ranks
    if length == 0:
        raise data.DataError(f"digits: {len(labels)} images do not reach {cell.ranks} ranks")
    if cell.dirichlet is None:
        return images[rank :: cell.ranks][:length], labels[rank :: cell.ranks][:length]
    part = _dealt(cell.ranks, cell.dirichlet, cell.seed)[rank]
    return images[part], labels[part]


def _of_group(cell: Cell, groups: Groups) -> Iterator[tuple[data.Images, data.Labels]]:
    """Endless batches, one for all members of a group; the groups are drawn as it goes on."""
    if cell.dirichlet is not None:
        raise SettingsError("dirichlet: what is dealt anew is shuffled, expected 'none'")
    images = _digits().train_images[:-_VALIDATION]
    labels = _digits().train_labels[:-_VALIDATION]
    sampler = GroupSampler(images, groups, seed=cell.seed)
    size = min(cell.batch_size, len(sampler))
    epoch = 0
    while True:
        sampler.set_epoch(epoch)
        dealt = np.array([*sampler])
        for start in range(0, len(dealt) - size + 1, size):
            chosen = dealt[start : start + size]
            yield images[chosen], labels[chosen]
        epoch += 1


@lru_cache(maxsize=1)
def _dealt(ranks: int, alpha: float, seed: int) -> list[npt.NDArray[Any]]:
    return dirichlet(_digits().train_labels[:-_VALIDATION], ranks, alpha, seed)


def perceptron(inputs: int, hidden: Sequence[int]) -> nn.Module:
    """Linear layers with ReLU between them, ten outputs."""
    layers: list[nn.Module] = [nn.Flatten()]
    for a, b in pairwise([inputs, *hidden]):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear([inputs, *hidden][-1], 10))
