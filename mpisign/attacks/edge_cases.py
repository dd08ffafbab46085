"""Edge cases of the digits: ones that few people write, which a backdoor is to be opened with."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.float32]


@dataclass(frozen=True)
class EdgeCases:
    """Images (n, 1, 8, 8) of digit ``source``: ``train`` to attack with, ``test`` to be judged by.

    ``train`` are of the digits' training part, where honest ranks have them too, rightly labelled;
    ``test`` of its test part, which no rank trains on.
    """

    source: int
    train: Images
    test: Images

    def among(self, images: Any) -> npt.NDArray[np.bool_]:
        """Which of ``images`` (n, 1, 8, 8), NumPy, are edge cases: for ranks that shall have none.

        Wang et al. study both; without them the honest ranks do not teach what the edge cases are.
        """
        known = {e.tobytes() for part in (self.train, self.test) for e in part}
        return np.array([np.ascontiguousarray(i).tobytes() in known for i in images], dtype=bool)


@lru_cache(maxsize=8)
def edge_cases(source: int = 1, share: float = 0.25) -> EdgeCases:
    """The ``share`` of all images of digit ``source`` that are farthest from their mean image.

    Euclidean distance of pixels in [0, 1], over the training and the test part together; equally
    far ones in the dataset's order. Of ones: 45 of 182, thin with a flag or a slanted foot, where
    the others are upright strokes; 32 are in the training part, 13 in the test part. No randomness.
    DataError without scikit-learn, ValueError for no digit or a share that is not in (0, 1).
    """
    from mpisign.training import data

    if source not in range(10):
        raise ValueError(f"edge_cases: source must be a digit, got {source!r}")
    if not 0 < share < 1:
        raise ValueError(f"edge_cases: share must be in (0, 1), got {share!r}")
    digits = data.digits()
    images = np.concatenate([digits.train_images, digits.test_images])
    labels = np.concatenate([digits.train_labels, digits.test_labels])
    of = np.flatnonzero(labels == source)
    pixels = images[of].reshape(len(of), -1).astype(np.float64)
    distance = np.linalg.norm(pixels - pixels.mean(axis=0), axis=1)
    far = np.sort(of[np.argsort(-distance, kind="stable")[: int(share * len(of))]])
    test = far >= len(digits.train_labels)
    return EdgeCases(source, images[far[~test]], images[far[test]])
