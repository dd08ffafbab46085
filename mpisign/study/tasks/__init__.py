"""What is learned: one file a task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpisign.study.tasks.metric import Metric, metric
from mpisign.training.errors import SettingsError

if TYPE_CHECKING:
    from mpisign.study.cell import Cell
    from mpisign.study.tasks.base import Task

__all__ = ["Metric", "build", "metric"]


def build(cell: Cell, rank: int) -> Task:
    """The task of ``cell`` as ``rank`` sees it; SettingsError for options that it does not know."""
    if cell.task == "digits":
        from mpisign.study.tasks.digits import Digits as Kind
    elif cell.task == "quadratic":
        from mpisign.study.tasks.quadratic import Quadratic as Kind  # type: ignore[assignment]
    else:
        from mpisign.study.tasks.text import Text as Kind  # type: ignore[assignment]
    try:
        return Kind(cell, rank, **cell.task_options)
    except TypeError as error:
        raise SettingsError(f"task_options of {cell.task}: {error}") from error
