"""A study's results as a picture: a panel a grid, a line a method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mpisign.study.file import Grid, Study
from mpisign.study.summary import Point, Summary
from mpisign.study.table import axis_value, varying
from mpisign.study.tasks import metric

# Okabe and Ito's colours, which colour-blind people tell apart too; shapes differ as well.
_COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C8C8C")
_MARKERS = "os^Dv<>P"
_ALONG = {
    "batch_size": "batch size of a rank",
    "ranks": "ranks",
    "adversaries": "hostile ranks",
    "dirichlet": "Dirichlet alpha (labels ever more alike on all ranks)",
    "step": "steps",
    "sent": "bytes that a rank sent",
}
_COLUMNS = 3


def write(path: Path, study: Study, summaries: Sequence[Summary]) -> None:
    """Draws means of the seeds, with bars or bands from the lowest to the highest, into ``path``.

    A grid has one panel for each combination of what varies but is not along the horizontal axis.
    """
    from matplotlib.figure import Figure

    panels = [panel for grid in study.grids for panel in _panels(grid, summaries)]
    columns = min(len(panels), _COLUMNS)
    rows = -(-len(panels) // columns)
    size = (max(6.4, 4.9 * columns), 4.1 * rows + 0.9)
    figure = Figure(figsize=size, dpi=130, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    labels = list(dict.fromkeys(m.label for g in study.grids for m in g.methods))
    looks = {label: (_COLOURS[i % 8], _MARKERS[i % 8]) for i, label in enumerate(labels)}
    for axis, (title, grid, own) in zip(axes, panels, strict=False):
        _draw(axis, grid, own, looks)
        axis.set_title(title, fontsize=10, loc="left")
    curves = [a for a, (_, g, _) in zip(axes, panels, strict=False) if _is_curve(g)]
    if len({g.task for _, g, _ in panels if _is_curve(g)}) == 1:
        limits = [limit for a in curves for limit in a.get_ylim()]
        for axis in curves:
            axis.set_ylim(min(limits), max(limits))
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    handles = {
        label: h for a in axes for h, label in zip(*a.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=1 + 2 * columns,
        fontsize=8.5,
        frameon=False,
    )
    figure.suptitle(study.title, fontsize=12, x=0.01, ha="left")
    figure.savefig(path)


def _panels(grid: Grid, summaries: Sequence[Summary]) -> list[tuple[str, Grid, list[Summary]]]:
    split = [axis for axis in varying(grid) if axis != grid.along]
    found: dict[str, list[Summary]] = {}
    for s in summaries:
        if s.group.grid is not grid:
            continue
        point = s.group.point
        told = [f"{_short(a)} {axis_value(a, point[a])}" for a in split]
        if grid.along == "adversaries" and "attack" in split and point["adversaries"] == 0:
            # Without adversaries all attacks are one: it begins each line.
            for attack in grid.axes["attack"]:
                told[split.index("attack")] = f"{_short('attack')} {attack}"
                found.setdefault(", ".join([grid.label, *told]), []).append(s)
            continue
        found.setdefault(", ".join([grid.label, *told]), []).append(s)
    return [(title, grid, own) for title, own in found.items()]


def _short(axis: str) -> str:
    return {"batch_size": "batch", "dirichlet": "alpha", "adversaries": "hostile"}.get(axis, axis)


def _draw(axis: Any, grid: Grid, own: Sequence[Summary], looks: dict[str, tuple[str, str]]) -> None:
    for method in grid.methods:
        colour, marker = looks[method.label]
        points = _points(grid, [s for s in own if s.group.method is method])
        if not points:
            continue
        scale = 100 if metric(grid.task).percent else 1
        x, *values = zip(*sorted(points), strict=True)
        mean, low, high = ([scale * v for v in row] for row in values)
        axis.plot(x, mean, marker=marker, color=colour, label=method.label, markersize=5)
        if _is_curve(grid):
            axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        else:
            axis.vlines(x, low, high, color=colour, linewidth=1.2)
    _finish(axis, grid, own)


def _points(grid: Grid, own: Sequence[Summary]) -> list[Point]:
    """Place on the horizontal axis, mean, lowest and highest metric."""
    if _is_curve(grid):
        return [point for s in own for point in s.curve(grid.along)]
    points = []
    for s in own:
        if s.mean is not None:
            x = s.group.point[grid.along]
            if grid.along == "dirichlet":
                x = _alphas(grid).index(x)
            points.append((float(x), s.mean, min(s.values), max(s.values)))
    return points


def _is_curve(grid: Grid) -> bool:
    return grid.along in ("step", "sent")


def _alphas(grid: Grid) -> list[float | None]:
    """The concentrations in ascending order; what is shuffled is the most even of all."""
    return [*sorted(a for a in grid.axes["dirichlet"] if a is not None), None]


def _finish(axis: Any, grid: Grid, own: Sequence[Summary]) -> None:
    axis.set(xlabel=_ALONG[grid.along], ylabel=metric(grid.task).heading)
    if grid.along in ("batch_size", "sent"):
        axis.set_xscale("log", base=2 if grid.along == "batch_size" else 10)
    if grid.along in ("batch_size", "ranks", "adversaries"):
        ticks = sorted(grid.axes[grid.along])
        axis.set_xticks(ticks, [str(t) for t in ticks])
        axis.minorticks_off()
    if grid.along == "dirichlet":
        names = [axis_value("dirichlet", a) for a in _alphas(grid)]
        axis.set_xticks(range(len(names)), names)
    values = [v for s in own for v in s.values]
    if grid.task == "quadratic" and values and max(values) > 20 * min(values) > 0:
        axis.set_yscale("log")
    axis.grid(True, color="#dddddd", linewidth=0.7)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_axisbelow(True)
