"""Images to learn from: one train/test split, and each rank's share of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from mpisign.attacks.edge_cases import digits_split
from mpisign.experiments.errors import DataError, missing

if TYPE_CHECKING:
    from mpisign.detox import Groups, GroupSampler

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
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
    from mpisign.experiments import cifar, idx

    if not directory.is_dir():
        raise DataError(f"--data {directory}: no such directory")
    for load_from in (idx.load, cifar.load):
        found = load_from(directory)
        if found is not None:
            return found
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


def feed(
    dataset: Dataset,
    rank: int,
    size: int,
    batch_size: int,
    seed: int,
    groups: Groups | None = None,
    alpha: float | None = None,
    order: Literal["random", "flipflop"] = "random",
) -> Iterator[tuple[Images, Labels]]:
    """The batches of ``rank``, without end; DataError if it would get no image.

    Of its shard; of its share by ``dirichlet``, if ``alpha`` is given; or, with ``groups``, the
    same for all members of its group, in ``order``.
    """
    if groups is not None:
        from mpisign.detox import GroupSampler

        every = range(len(dataset.train_labels))
        sampler = GroupSampler(every, groups, order=order, seed=seed)
        return group_batches(dataset, sampler, batch_size)
    images, labels = dataset.shard(rank, size)
    if alpha is not None:
        part = _spread(dataset, size, alpha, seed)[rank]
        images, labels = dataset.train_images[part], dataset.train_labels[part]
    return batches(images, labels, batch_size, seed, rank)


def steps_of_epoch(dataset: Dataset, shares: int, batch_size: int) -> int:
    """Steps of an epoch of which each of ``shares`` ranks, or groups, sees its own part."""
    return max(1, len(dataset.train_labels) // shares // batch_size)


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


def dirichlet(
    labels: npt.NDArray[np.int64], ranks: int, alpha: float, seed: int | Sequence[int]
) -> list[npt.NDArray[Any]]:
    """Indices of each rank's examples: ``len(labels) // ranks`` each, none twice.

    Each rank draws its examples by its own distribution over labels, which is drawn from
    Dir(alpha x the labels' frequencies): alpha near 0 gives a rank one label, a large alpha the
    frequencies of all. A label that has run out leaves the draw. The same on every rank. Source:
    Hsu, Qi and Brown 2019, Measuring the effects of non-identical data distribution, section 3.
    """
    rng = np.random.default_rng(seed)
    left = [list(rng.permutation(np.flatnonzero(labels == c))) for c in np.unique(labels)]
    frequencies = np.array([len(of) for of in left]) / len(labels)
    parts = []
    for _ in range(ranks):
        wanted = rng.dirichlet(alpha * frequencies)
        part = []
        for _ in range(len(labels) // ranks):
            weights = np.where([bool(of) for of in left], wanted, 0.0)
            if weights.sum() == 0:  # all labels of this rank have run out
                weights = np.array([len(of) for of in left], dtype=np.float64)
            part.append(left[rng.choice(len(left), p=weights / weights.sum())].pop())
        parts.append(np.array(part))
    return parts


@lru_cache(maxsize=1)
def _spread(dataset: Dataset, ranks: int, alpha: float, seed: int) -> list[npt.NDArray[Any]]:
    return dirichlet(dataset.train_labels, ranks, alpha, seed)
