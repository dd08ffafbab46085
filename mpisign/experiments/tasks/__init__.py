"""What is learned: one file a task, and the metric of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mpisign.experiments.errors import SettingsError

if TYPE_CHECKING:
    from mpisign.detox import Groups
    from mpisign.experiments.cell import Cell
    from mpisign.experiments.tasks.base import Task


@dataclass(frozen=True)
class Metric:
    """``percent``: a share in [0, 1], written as percent."""

    name: str
    higher_is_better: bool
    decimals: int
    percent: bool = False

    def shown(self, value: float, like: float | None = None) -> str:
        """``value`` in the unit of the table, without the unit; with the decimals of ``like``."""
        large = abs(value if like is None else like) >= 100
        return f"{100 * value if self.percent else value:.{0 if large else self.decimals}f}"

    @property
    def heading(self) -> str:
        """Name and unit."""
        return f"{self.name}, %" if self.percent else self.name


_METRICS = {
    "digits": Metric("test accuracy", higher_is_better=True, decimals=1, percent=True),
    "fashion-mnist": Metric("test accuracy", higher_is_better=True, decimals=1, percent=True),
    "quadratic": Metric("f at the end", higher_is_better=False, decimals=1),
    "text": Metric("bits per character, held out", higher_is_better=False, decimals=3),
}
#: The tasks with labels, whose ranks can get unequal ones, and whose groups get one batch.
IMAGES = ("digits", "fashion-mnist")
#: What can be reported of the digits beside it.
ALSO = {
    "backdoor": Metric("backdoor accuracy", higher_is_better=False, decimals=1, percent=True),
    "recall": Metric("recall of each digit", higher_is_better=True, decimals=1, percent=True),
}


def metric(task: str) -> Metric:
    """The metric of a task, known without torch."""
    return _METRICS[task]


def build(cell: Cell, rank: int, groups: Groups | None = None) -> Task:
    """The task of ``cell`` on ``rank``; SettingsError for options that it does not have."""
    if groups is not None and cell.task not in IMAGES:
        known = " or ".join(IMAGES)
        raise SettingsError(f"task: expected {known}, whose groups get one batch, got {cell.task}")
    kind: Any
    if cell.task == "digits":
        from mpisign.experiments.tasks.images import Digits as kind
    elif cell.task == "fashion-mnist":
        from mpisign.experiments.tasks.fashion import Fashion as kind
    elif cell.task == "quadratic":
        from mpisign.experiments.tasks.quadratic import Quadratic as kind
    else:
        from mpisign.experiments.tasks.text import Text as kind
    more: dict[str, Any] = {} if groups is None else {"groups": groups}
    try:
        made: Task = kind(cell, rank, **more, **cell.task_options)
        return made
    except TypeError as error:
        raise SettingsError(f"task_options of {cell.task}: {error}") from error
