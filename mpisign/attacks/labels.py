"""LabelFlipping: hostile ranks learn, honestly, from labels that are turned round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from mpisign.attacks.base import Attack, Sees


@dataclass(frozen=True)
class LabelFlipping(Attack):
    """Label y becomes classes - 1 - y in hostile ranks' batches; their gradients are their own.

    As an object on rows, ByzFL's convention: their mean, for gradients that flipped labels gave.
    Source: Tolpegin et al. 2020, Data poisoning attacks against federated learning systems.
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
