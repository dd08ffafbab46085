"""Images to learn from: one train/test split, and each rank's share of it."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import numpy as np
import numpy.typing as npt

from mpisign.attacks.edge_cases import digits_split
from mpisign.experiments.errors import DataError, missing

if TYPE_CHECKING:
    from mpisign.detox import Groups, GroupSampler

Images = npt.NDArray[np.float32]
#: As they are kept: float32 in [0, 1], or bytes, a quarter of the memory.
Pixels = npt.NDArray[np.float32] | npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
F = TypeVar("F", bound=Callable[..., Any])

#: Where Debian's package dataset-fashion-mnist has its four files, and who knows another place.
FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")
_ELSEWHERE = "MPISIGN_FASHION_MNIST"
#: The name of that data set, as ``--data`` and ``task`` take it.
FASHION = "fashion-mnist"


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images (n, channels, height, width), see ``scaled``; labels (n,), int64 in [0, 10)."""

    name: str
    train_images: Pixels
    train_labels: Labels
    test_images: Pixels
    test_labels: Labels

    def shard(self, rank: int, size: int) -> tuple[Pixels, Labels]:
        """Rank ``rank``'s training images, every ``size``-th; DataError if there are none."""
        length = len(self.train_labels) // size
        if length == 0:
            raise DataError(
                f"{self.name}: {len(self.train_labels)} images do not reach {size} ranks"
            )
        return self.train_images[rank::size][:length], self.train_labels[rank::size][:length]


def load(directory: Path | None = None) -> Dataset:
    """scikit-learn's digits, or Fashion-MNIST or CIFAR-10 from the files in ``directory``.

    ``fashion-mnist``, where no directory has that name, is Debian's package.
    """
    if directory is None:
        return digits()
    from mpisign.experiments import image_files

    if str(directory) == FASHION and not directory.is_dir():
        return fashion_mnist()
    if not directory.is_dir():
        raise DataError(f"--data {directory}: no such directory")
    for load_from in (image_files.load_idx, image_files.load_cifar):
        found = load_from(directory)
        if found is not None:
            return Dataset(*found)
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


def once(function: F) -> F:
    """Keeps what ``function`` returned last. Threads that ask at the same time get one object."""
    cached, lock = lru_cache(maxsize=1)(function), threading.Lock()

    @wraps(function)
    def locked(*args: Any) -> Any:
        with lock:
            return cached(*args)

    return cast(F, locked)


@once
def fashion_mnist() -> Dataset:
    """All of Fashion-MNIST, read once a process: Debian's package, or a folder of its files."""
    from mpisign.experiments import image_files

    folder = Path(os.environ.get(_ELSEWHERE) or FASHION_FOLDER)
    found = image_files.load_idx(folder) if folder.is_dir() else None
    if found is None:
        raise DataError(
            f"{FASHION}: not in {folder}: apt-get install dataset-fashion-mnist, or name a folder "
            "with its four files, train-images-idx3-ubyte[.gz], ..., by --data DIR or "
            f"{_ELSEWHERE}=DIR"
        )
    return Dataset(FASHION, *found[1:])


def scaled(pixels: Pixels) -> Images:
    """``pixels`` as a network takes them: bytes divided by 255, float32 in [0, 1] as it is."""
    if pixels.dtype == np.uint8:
        return np.divide(pixels, 255, dtype=np.float32)
    return pixels  # type: ignore[return-value]  # float32


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
    """The batches of ``rank``, without end: of its shard, its Dirichlet share, or as its group."""
    if groups is not None:
        from mpisign.detox import GroupSampler

        every = range(len(dataset.train_labels))
        sampler = GroupSampler(every, groups, order=order, seed=seed)
        return group_batches(dataset, sampler, batch_size)
    images, labels = share(dataset, rank, size, seed, alpha)
    return batches(images, labels, batch_size, seed, rank)


def share(
    dataset: Dataset, rank: int, size: int, seed: int, alpha: float | None
) -> tuple[Pixels, Labels]:
    """What ``rank`` of ``size`` learns from: its shard, or its Dirichlet share."""
    if alpha is None:
        return dataset.shard(rank, size)
    part = _spread(dataset, size, alpha, seed)[rank]
    return dataset.train_images[part], dataset.train_labels[part]


def steps_of_epoch(dataset: Dataset, shares: int, batch_size: int) -> int:
    """Steps of an epoch of which each of ``shares`` ranks, or groups, sees its own part."""
    return max(1, len(dataset.train_labels) // shares // batch_size)


def batches(
    images: Pixels, labels: Labels, batch_size: int, seed: int, rank: int
) -> Iterator[tuple[Images, Labels]]:
    """Endless batches, (batch_size, c, h, w) and (batch_size,), shuffled anew in each epoch."""
    rng = np.random.default_rng([seed, rank])
    return _batches(images, labels, batch_size, lambda epoch: rng.permutation(len(labels)))


def group_batches(
    dataset: Dataset, sampler: GroupSampler, batch_size: int
) -> Iterator[tuple[Images, Labels]]:
    """Endless batches of the training images, the same for all members of a group."""

    def order(epoch: int) -> npt.NDArray[np.int64]:
        sampler.set_epoch(epoch)  # and with it that of the groups
        return np.fromiter(sampler, dtype=np.int64, count=len(sampler))

    return _batches(dataset.train_images, dataset.train_labels, batch_size, order)


def _batches(
    images: Pixels, labels: Labels, batch_size: int, order: Callable[[int], Any]
) -> Iterator[tuple[Images, Labels]]:
    """What does not fill a batch at an epoch's end is left for the next shuffle."""
    for epoch in itertools.count():
        chosen = order(epoch)
        size = min(batch_size, len(chosen))
        for start in range(0, len(chosen) - size + 1, size):
            batch = chosen[start : start + size]
            yield scaled(images[batch]), labels[batch]


def dirichlet(
    labels: npt.NDArray[np.int64], ranks: int, alpha: float, seed: int | Sequence[int]
) -> list[npt.NDArray[Any]]:
    """Indices of each rank's examples, by Hsu, Qi and Brown 2019, section 3; equal on all ranks."""
    rng = np.random.default_rng(seed)
    pools = [rng.permutation(np.flatnonzero(labels == c))[::-1] for c in np.unique(labels)]
    left = np.array([len(pool) for pool in pools])
    frequencies = left / len(labels)
    parts = []
    for _ in range(ranks):
        wanted = rng.dirichlet(alpha * frequencies)
        # One number each, as rng.choice(len(pools), p=...) takes it, but of all images at once.
        drawn = rng.random(len(labels) // ranks)
        part = np.empty(len(drawn), dtype=np.int64)
        done = 0
        while done < len(drawn):
            weights = np.where(left > 0, wanted, 0.0)
            weighed = weights.sum() > 0
            if not weighed:  # all labels of this rank have run out
                weights = left.astype(np.float64)
            bounds = (weights / weights.sum()).cumsum()
            bounds /= bounds[-1]
            # The weights hold until a label runs out; where they are what is left, for one image.
            chosen = bounds.searchsorted(
                drawn[done:] if weighed else drawn[done : done + 1], "right"
            )
            places = [np.flatnonzero(chosen == c) for c in range(len(pools))]
            ends = [at[n - 1] + 1 for at, n in zip(places, left, strict=True) if 0 < n <= len(at)]
            end = min([len(chosen), *ends])
            for c, at in enumerate(places):
                taken = at[at < end]
                first = len(pools[c]) - left[c]
                part[done + taken] = pools[c][first : first + len(taken)]
                left[c] -= len(taken)
            done += end
        parts.append(part)
    return parts


@once
def _spread(dataset: Dataset, ranks: int, alpha: float, seed: int) -> list[npt.NDArray[Any]]:
    return dirichlet(dataset.train_labels, ranks, alpha, seed)
