"""Fashion-MNIST, whole and real: 28 x 28, by a perceptron or a LeNet."""

from __future__ import annotations

from collections.abc import Sequence

from mpisign.detox import Groups
from mpisign.experiments import data, model
from mpisign.experiments.cell import Cell
from mpisign.experiments.errors import SettingsError
from mpisign.experiments.tasks.images import Dealt, apart

#: Of the 60,000 training images: rates are chosen by these, no rank trains on them.
_VALIDATION = 2000
_NETS = ("perceptron", "lenet")
_PIXELS = 28 * 28


class Fashion(Dealt):
    """Fashion-MNIST of a study: 58,000 images to learn from, 2,000 to choose rates, 10,000 to test.

    ``net``: "perceptron" of ``hidden`` units (784-128-10, 101,770 parameters) or "lenet" (61,706);
    ``images``: so many of the training images alone.
    """

    def __init__(
        self,
        cell: Cell,
        rank: int,
        net: str = "perceptron",
        hidden: Sequence[int] | None = None,
        images: int | None = None,
        dealt: str = "once",
        groups: Groups | None = None,
    ) -> None:
        if net not in _NETS:
            raise SettingsError(f"net: expected one of {', '.join(_NETS)}, got {net!r}")
        if images is not None and (type(images) is not int or images < 1):
            raise SettingsError(f"images: expected a whole number from 1, got {images!r}")
        lenet = net == "lenet"
        if lenet and hidden is not None:
            raise SettingsError(f"hidden: expected none, lenet has its own, got {hidden!r}")
        super().__init__(
            cell,
            rank,
            parts(images),
            model.lenet if lenet else lambda: model.perceptron(_PIXELS, hidden or (128,)),
            dealt,
            groups,
        )


@data.once
def parts(images: int | None) -> tuple[data.Dataset, tuple[data.Pixels, data.Labels]]:
    return apart(data.fashion_mnist(), _VALIDATION, images)
