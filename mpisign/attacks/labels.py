"""LabelFlipping: hostile ranks train honestly on flipped labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from mpisign.attacks.base import Attack, Sees


@dataclass(frozen=True)
class LabelFlipping(Attack):
    """Label y becomes classes - 1 - y in hostile ranks' batches; gradients are not replaced.

    On rows, by ByzFL's convention, it is their mean, for gradients that flipped labels gave.
    Source: Tolpegin et al. 2020, Data poisoning attacks against federated learning systems.

    Args:
        classes: Number of labels.

    Example:
        >>> import numpy as np
        >>> LabelFlipping().batch(None, np.array([0, 7]))[1].tolist()
        [9, 2]
    """

    classes: int = 10
    sees: ClassVar[Sees] = "nothing"

    @property
    def replaces(self) -> bool:
        return False

    def of(self, rows: Any) -> Any:
        return rows.mean(0)

    def batch(self, images: Any, labels: Any) -> tuple[Any, Any]:
        return images, self.classes - 1 - labels
