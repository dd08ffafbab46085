"""Which training examples a rank holds, where labels are spread unevenly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


def dirichlet(
    labels: npt.NDArray[np.int64], ranks: int, alpha: float, seed: int | Sequence[int]
) -> list[npt.NDArray[Any]]:
    """Indices of each rank's examples: ``len(labels) // ranks`` each, none twice.

    A rank draws its examples by a distribution over labels of its own, which is drawn from
    Dir(alpha x the labels' frequencies): alpha near 0 gives a rank one label, a large one the
    frequencies of all. A label that has run out leaves the draw (Hsu, Qi and Brown 2019, Measuring
    the effects of non-identical data distribution, section 3). The same on every rank.
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
            if weights.sum() == 0:  # all that this rank wants has run out
                weights = np.array([len(of) for of in left], dtype=np.float64)
            part.append(left[rng.choice(len(left), p=weights / weights.sum())].pop())
        parts.append(np.array(part))
    return parts
