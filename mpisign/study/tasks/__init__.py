"""What is learned: one file a task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mpisign.study.tasks.metric import Metric, metric
from mpisign.training.errors import SettingsError

if TYPE_CHECKING:
    from mpisign.detox import Groups
    from mpisign.study.cell import Cell
    from mpisign.study.tasks.base import Task

__all__ = ["Metric", "build", "metric"]


def build(cell: Cell, rank: int, groups: Groups | None = None) -> Task:
    """The task of ``cell`` as ``rank`` sees it; SettingsError for options that it does not know.

    ``groups``: whose members get one batch, drawn anew as the task says. Digits alone knows them.
    """
    if groups is not None and cell.task != "digits":
        raise SettingsError(f"task: expected digits, whose groups get one batch, got {cell.task}")
    if cell.task == "digits":
        from mpisign.study.tasks.digits import Digits as Kind
    elif cell.task == "quadratic":
        from mpisign.study.tasks.quadratic import Quadratic as Kind  # type: ignore[assignment]
    else:
        from mpisign.study.tasks.text import Text as Kind  # type: ignore[assignment]
    more: dict[str, Any] = {} if groups is None else {"groups": groups}
    try:
        return Kind(cell, rank, **more, **cell.task_options)
    except TypeError as error:
        raise SettingsError(f"task_options of {cell.task}: {error}") from error
