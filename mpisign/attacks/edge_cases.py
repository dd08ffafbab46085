"""Edge cases of the digits: unusual ones, the trigger of a backdoor."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

#: The split is the same for all seeds, so that accuracies of different runs compare.
_SPLIT_SEED = 0


@dataclass(frozen=True)
class EdgeCases:
    """Images (n, 1, 8, 8) of digit ``source``: ``train`` for the attack, ``test`` to measure it."""

    source: int
    train: Images  # of the training part, which honest ranks have with the right labels
    test: Images  # of the test part, which no rank trains on

    def among(self, images: Any) -> npt.NDArray[np.bool_]:
        """Which of ``images`` (n, 1, 8, 8), NumPy, are edge cases, which honest ranks may lack."""
        known = {e.tobytes() for part in (self.train, self.test) for e in part}
        return np.array([np.ascontiguousarray(i).tobytes() in known for i in images], dtype=bool)


def digits_split() -> tuple[Images, Labels, Images, Labels]:
    """The digits: train images (n, 1, 8, 8) in [0, 1] and labels (n,), then a quarter to test."""
    pixels, labels = _digits()
    images = (pixels.reshape(-1, 1, 8, 8) / 16.0).astype(np.float32)
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(labels))
    test, train = np.split(order, [len(labels) // 4])
    return images[train], labels[train], images[test], labels[test]


def _digits() -> tuple[npt.NDArray[Any], Labels]:
    """scikit-learn's 1,797 digits: pixels (n, 64) from 0 to 16, labels (n,)."""
    sklearn = importlib.util.find_spec("sklearn")
    for folder in (sklearn.submodule_search_locations or ()) if sklearn is not None else ():
        file = Path(folder, "datasets", "data", "digits.csv.gz")
        if file.is_file():  # to import scikit-learn takes each rank seconds
            rows = np.loadtxt(file, delimiter=",", dtype=np.int64)
            return rows[:, :-1], rows[:, -1]
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return pixels, labels.astype(np.int64)


@lru_cache(maxsize=8)
def edge_cases(source: int = 1, share: float = 0.25) -> EdgeCases:
    """The ``share`` of all images of digit ``source`` that are farthest from their mean image.

    Euclidean distance of pixels in [0, 1] over the training and the test part; ties in the
    dataset's order; no randomness. Of ones: 45 of 182, thin with a flag or a slanted foot, where
    the others are upright strokes; 32 in the training part, 13 in the test part.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: ``source`` is no digit or ``share`` is not in (0, 1).

    Example:
        >>> edge_cases(1).train.shape, edge_cases(1).test.shape
        ((32, 1, 8, 8), (13, 1, 8, 8))
    """
    if source not in range(10):
        raise ValueError(f"edge_cases: source must be a digit, got {source!r}")
    if not 0 < share < 1:
        raise ValueError(f"edge_cases: share must be in (0, 1), got {share!r}")
    train_images, train_labels, test_images, test_labels = digits_split()
    images = np.concatenate([train_images, test_images])
    of = np.flatnonzero(np.concatenate([train_labels, test_labels]) == source)
    far = np.sort(of[np.argsort(-from_mean(images[of]), kind="stable")[: int(share * len(of))]])
    test = far >= len(train_labels)
    return EdgeCases(source, images[far[~test]], images[far[test]])


def from_mean(images: Images) -> npt.NDArray[np.float64]:
    """Each image's Euclidean distance from their mean image."""
    pixels = images.reshape(len(images), -1).astype(np.float64)
    distance: npt.NDArray[np.float64] = np.linalg.norm(pixels - pixels.mean(axis=0), axis=1)
    return distance
