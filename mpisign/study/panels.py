"""Which panels a picture has: one for each combination of what is not along its axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mpisign.study.file import Grid, Study
from mpisign.study.summary import Summary
from mpisign.study.table import axis_value, varying

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
    split = _split(grid)
    own = [s for s in summaries if s.group.grid is grid]
    if "placement" in split:
        return _by_placement(grid, own)
    found: dict[str, list[Summary]] = {}
    for s in own:
        point = s.group.point
        told = [f"{_short(a)} {axis_value(a, point[a])}" for a in split]
        if grid.along == "adversaries" and "attack" in split and point["adversaries"] == 0:
            # Without adversaries all attacks are one: it begins each line.
            for attack in grid.axes["attack"]:
                told[split.index("attack")] = f"{_short('attack')} {attack}"
                found.setdefault(", ".join([grid.label, *told]), []).append(s)
            continue
        found.setdefault(", ".join([grid.label, *told]), []).append(s)
    return [Panel(title, grid, of) for title, of in found.items()]


def _by_placement(grid: Grid, own: Sequence[Summary]) -> list[Panel]:
    """A row for each placement; without adversaries all placements and attacks are one."""
    made = []
    for placement in grid.axes["placement"]:
        for attack in grid.axes["attack"]:
            part = [
                s
                for s in own
                if s.group.point["attack"] in (attack, None)
                and s.group.point["placement"] in (placement, None)
            ]
            lead = attack if "attack" in _split(grid) else grid.label
            made.append(Panel(f"{lead}, {placement} placement", grid, part))
    return made


def _split(grid: Grid) -> list[str]:
    """What varies and is not along the horizontal axis."""
    axes = [axis for axis in varying(grid) if axis != grid.along]
    if grid.along == "method":
        axes = [axis for axis in axes if axis != "adversaries"]
    return axes


def _short(axis: str) -> str:
    return _SHORT.get(axis, axis)
