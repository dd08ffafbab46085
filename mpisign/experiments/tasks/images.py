"""Images by a small network: scikit-learn's digits, or the data sets of ``--data``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from mpisign.attacks.backdoor import Backdoor
from mpisign.detox import Groups
from mpisign.experiments import data, model
from mpisign.experiments.cell import Cell
from mpisign.experiments.errors import SettingsError
from mpisign.experiments.tasks.base import Task

#: Of the training images of a study: rates are chosen by these, no rank trains on them.
_VALIDATION = 248
_DEALT = ("once", "anew")

Feed = Iterator[tuple[data.Images, data.Labels]]


class Images(Task):
    """A classifier ``net``, the batches of this rank, and what it is evaluated on.

    Before the last of ``steps`` it is evaluated on the first ``sample`` images alone, if given.
    """

    def __init__(
        self,
        net: nn.Module,
        feed: Feed,
        steps: int,
        *held_out: tuple[data.Pixels, data.Labels],
        sample: int | None = None,
    ) -> None:
        self.net, self.steps, self._feed = net, steps, feed
        self._taken, self._sample = 0, sample
        self.named = list(net.named_parameters())
        self._held_out = [(torch.from_numpy(x), torch.from_numpy(y)) for x, y in held_out]

    def loss(self, step: int) -> torch.Tensor:
        images, labels = next(self._feed)
        self._taken += 1
        if self.spoil is not None:
            images, labels = self.spoil(images, labels)
        return nn.functional.cross_entropy(
            self.net(torch.from_numpy(images)), torch.from_numpy(labels)
        )

    def evaluate(self) -> tuple[float, float]:
        some = self._sample if self._taken < self.steps else None
        found = [model.accuracy(self.net, x[:some], y[:some]) for x, y in self._held_out]
        return found[0], found[-1]


class Dealt(Images):
    """The images of a study: ``net`` learns from ``parts``'s first, rates are chosen by its second.

    ``dealt`` anew: to all ranks in every epoch, as groups always get theirs; else a rank keeps
    its share.
    """

    def __init__(
        self,
        cell: Cell,
        rank: int,
        parts: tuple[data.Dataset, tuple[data.Pixels, data.Labels]],
        net: Callable[[], nn.Module],
        dealt: str = "once",
        groups: Groups | None = None,
    ) -> None:
        dataset, validation = parts
        if dealt not in _DEALT:
            raise SettingsError(f"dealt: expected one of {', '.join(_DEALT)}, got {dealt!r}")
        if dealt == "anew" and groups is None:
            groups = Groups.of(cell.ranks, rank, redundancy=1, placement="packed")
        if groups is not None and cell.dirichlet is not None:
            raise SettingsError("dirichlet: what is dealt anew is shuffled, expected 'none'")
        shares = cell.ranks if groups is None else len(groups)
        epoch = data.steps_of_epoch(dataset, shares, cell.batch_size)
        alpha, seed = cell.dirichlet, cell.seed
        super().__init__(
            model.seeded(seed, net),
            data.feed(dataset, rank, cell.ranks, cell.batch_size, seed, groups, alpha),
            cell.steps or (cell.epochs or 1) * epoch,
            validation,
            (dataset.test_images, dataset.test_labels),
        )


class Digits(Dealt):
    """The digits of a study: 1,100 images to learn from, 248 to choose rates by, 449 to test."""

    def __init__(
        self,
        cell: Cell,
        rank: int,
        hidden: Sequence[int] = (64,),
        dealt: str = "once",
        groups: Groups | None = None,
        net: str = "perceptron",
    ) -> None:
        made = {
            "perceptron": lambda: model.perceptron(64, hidden),
            "convolutional": lambda: model.convolutional(1, 8, 8),
        }
        if net not in made:
            raise SettingsError(f"net: expected one of {', '.join(made)}, got {net!r}")
        super().__init__(cell, rank, digits_of_study(), made[net], dealt, groups)

    def more(self) -> dict[str, Any]:
        images, labels = self._held_out[1]
        own = [labels == digit for digit in range(10)]
        recall = [round(model.accuracy(self.net, images[o], labels[o]), 4) for o in own]
        return {"recall": recall, "backdoor": round(Backdoor().accuracy(self.net), 4)}


@data.once
def digits_of_study() -> tuple[data.Dataset, tuple[data.Pixels, data.Labels]]:
    """The digits without the validation images, and those."""
    return apart(data.digits(), _VALIDATION)


def apart(
    d: data.Dataset, validation: int, most: int | None = None
) -> tuple[data.Dataset, tuple[data.Pixels, data.Labels]]:
    """``d`` without its last ``validation`` training images, at most ``most``; and those."""
    cut = -validation
    images, labels = d.train_images[:cut][:most], d.train_labels[:cut][:most]
    kept = data.Dataset(d.name, images, labels, d.test_images, d.test_labels)
    return kept, (d.train_images[cut:], d.train_labels[cut:])
