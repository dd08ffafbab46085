"""Images to learn from: one train/test split, one shard of it a rank."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mpisign.attacks.edge_cases import digits_split
from mpisign.training.errors import DataError, missing

if TYPE_CHECKING:
    from mpisign.detox import GroupSampler

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Dataset:
    """Images (n, channels, height, width), float32 in [0, 1]; labels (n,), int64 in [0, 10)."""

    name: str
    train_images: Images
    train_labels: Labels
    test_images: Images
    test_labels: Labels

    def shard(self, rank: int, size: int) -> tuple[Images, Labels]:
        """Rank ``rank``'s training images, every ``size``-th; DataError if a rank would get none.

        All shards have one length, so that every rank takes as many steps: up to ``size - 1``
        images are left over.
        """
        length = len(self.train_labels) // size
        if length == 0:
            raise DataError(
                f"{self.name}: {len(self.train_labels)} images do not reach {size} ranks"
            )
        return self.train_images[rank::size][:length], self.train_labels[rank::size][:length]


def load(directory: Path | None = None) -> Dataset:
    """scikit-learn's digits, or Fashion-MNIST or CIFAR-10 from the files in ``directory``.

    Raises DataError for a directory or file that is not what it should be.
    """
    if directory is None:
        return digits()
    from mpisign.training import cifar, idx

    if not directory.is_dir():
        raise DataError(f"--data {directory}: no such directory")
    for reader in (idx, cifar):
        if reader.present(directory):
            return reader.load(directory)
    raise DataError(
        f"--data {directory}: found neither Fashion-MNIST (train-images-idx3-ubyte[.gz], ...) "
        "nor CIFAR-10 (data_batch_1.bin or data_batch_1, ...)"
    )


def digits() -> Dataset:
    """The 1,797 handwritten digits, 8 x 8, that scikit-learn bundles; a quarter is for testing."""
    try:
        return Dataset("digits", *digits_split())
    except ImportError as error:
        raise missing("scikit-learn", error) from error


def batches(
    images: Images, labels: Labels, batch_size: int, seed: int, rank: int
) -> Iterator[tuple[Images, Labels]]:
    """Endless batches, (batch_size, c, h, w) and (batch_size,), shuffled anew in each epoch.

    What does not fill a batch at an epoch's end is left for the next shuffle.
    """
    rng = np.random.default_rng([seed, rank])
    batch_size = min(batch_size, len(labels))
    while True:
        order = rng.permutation(len(labels))
        for start in range(0, len(labels) - batch_size + 1, batch_size):
            chosen = order[start : start + batch_size]
            yield images[chosen], labels[chosen]


def group_batches(
    dataset: Dataset, sampler: GroupSampler, batch_size: int
) -> Iterator[tuple[Images, Labels]]:
    """Endless batches of the training images, the same for all members of a group.

    Sets the sampler's epoch, and with it the groups', when the first batch of one is asked for.
    """
    batch_size = min(batch_size, len(sampler))
    epoch = 0
    while True:
        sampler.set_epoch(epoch)
        chosen = np.fromiter(sampler, dtype=np.int64, count=len(sampler))
        for start in range(0, len(chosen) - batch_size + 1, batch_size):
            batch = chosen[start : start + batch_size]
            yield dataset.train_images[batch], dataset.train_labels[batch]
        epoch += 1
