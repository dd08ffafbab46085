"""What is learned: one file a task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mpisign.experiments.errors import SettingsError
from mpisign.experiments.tasks.metric import Metric, metric

if TYPE_CHECKING:
    from mpisign.detox import Groups
    from mpisign.experiments.cell import Cell
    from mpisign.experiments.tasks.base import Task

__all__ = ["Metric", "build", "metric"]


def build(cell: Cell, rank: int, groups: Groups | None = None) -> Task:
    """The task of ``cell`` on ``rank``; SettingsError for options that it does not have.

    ``groups``: their members get one batch, and the task draws them anew. Of digits alone.
    """
    if groups is not None and cell.task != "digits":
        raise SettingsError(f"task: expected digits, whose groups get one batch, got {cell.task}")
    kind: Any
    if cell.task == "digits":
        from mpisign.experiments.tasks.images import Digits as kind
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
