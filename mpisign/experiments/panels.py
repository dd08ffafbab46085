"""Which panels a picture has: one for each combination of what is not along its axis."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from mpisign.experiments.file import Grid, Study
from mpisign.experiments.summary import Summary
from mpisign.experiments.tables import axis_value, varying

_COLUMNS = 3
_WIDE = 4  # attacks side by side, one row of panels for each placement
_SHORT = {"batch_size": "batch", "dirichlet": "alpha", "adversaries": "hostile"}


@dataclass(frozen=True)
class Panel:
    """What of ``grid`` one panel shows."""

    title: str
    grid: Grid
    own: list[Summary]


def panels(study: Study, summaries: Sequence[Summary]) -> tuple[list[Panel], int]:
    """All panels in reading order, and how many are side by side."""
    found = [panel for grid in study.grids for panel in _of(grid, summaries)]
    side = _COLUMNS
    if len(study.grids) == 1 and _split(study.grids[0]) == ["attack", "placement"]:
        side = min(_WIDE, len(study.grids[0].axes["attack"]))
    elif all(_split(grid) == ["placement"] for grid in study.grids):
        side = len(study.grids[0].axes["placement"])
    return found, min(len(found), side)


def _of(grid: Grid, summaries: Sequence[Summary]) -> list[Panel]:
    """A panel for each combination of what is split, a row of them for each placement."""
    own = [s for s in summaries if s.group.grid is grid]
    split = sorted(_split(grid), key=lambda axis: axis != "placement")
    found = []
    for values in itertools.product(*(grid.axes[axis] for axis in split)):
        place = dict(zip(split, values, strict=True))
        part = [s for s in own if all(_is_at(s, *at) for at in place.items())]
        if "placement" in place:
            title = f"{place.get('attack', grid.label)}, {place['placement']} placement"
        else:
            named = [f"{_SHORT.get(a, a)} {axis_value(a, v)}" for a, v in place.items()]
            title = ", ".join([grid.label, *named])
        if part:
            found.append(Panel(title, grid, part))
    return found


def _is_at(s: Summary, axis: str, value: object) -> bool:
    """Without adversaries all attacks and placements are one, which is part of each panel."""
    own = s.group.point[axis]
    return own == value or (own is None and axis in ("attack", "placement"))


def _split(grid: Grid) -> list[str]:
    """What varies and is not along the horizontal axis."""
    axes = [axis for axis in varying(grid) if axis != grid.along]
    if grid.along == "method":
        axes = [axis for axis in axes if axis != "adversaries"]
    return axes
