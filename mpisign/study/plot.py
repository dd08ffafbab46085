"""A study's results as a picture: panels of a grid, a line or a mark a method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mpisign.study.cell import GROUPED
from mpisign.study.file import Grid, Study
from mpisign.study.panels import Panel, panels
from mpisign.study.plot_methods import draw_methods
from mpisign.study.summary import Point, Summary
from mpisign.study.table import axis_value
from mpisign.study.tasks import metric
from mpisign.study.tasks.metric import ALSO

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
    "digit": "digit",
}
_CURVES = ("step", "sent")

Look = tuple[str, str, str]  # colour, marker, line


def write(path: Path, study: Study, summaries: Sequence[Summary]) -> None:
    """Draws means of the seeds, with bars or bands from the lowest to the highest, into ``path``.

    A grid has one panel for each combination of what varies but is not along the horizontal axis.
    Where some methods have groups, the lines of those that have none are broken.
    """
    from matplotlib.figure import Figure

    all_panels, columns = panels(study, summaries)
    rows = -(-len(all_panels) // columns)
    wide = 4.9 if columns < 4 else 3.9
    size = (max(6.4, wide * columns), (4.1 if columns < 4 else 3.5) * rows + 0.9)
    figure = Figure(figsize=size, dpi=130, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    looks = _looks(study)
    for axis, panel in zip(axes, all_panels, strict=False):
        if panel.grid.along == "method":
            draw_methods(axis, panel, {label: look[0] for label, look in looks.items()})
        else:
            _draw(axis, panel.grid, panel.own, looks)
        axis.set_title(panel.title, fontsize=10, loc="left")
    _level(axes, all_panels)
    for axis in axes[len(all_panels) :]:
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


def _looks(study: Study) -> dict[str, Look]:
    """How each method is drawn."""
    methods = {m.label: m for g in study.grids for m in g.methods}
    grouped = any(m.compressor == GROUPED for m in methods.values())
    return {
        label: (
            _COLOURS[i % 8],
            _MARKERS[i % 8],
            "--" if grouped and m.compressor != GROUPED else "-",
        )
        for i, (label, m) in enumerate(methods.items())
    }


def _level(axes: Any, all_panels: Sequence[Panel]) -> None:
    """One scale for panels that are to be compared."""
    pairs = list(zip(axes, all_panels, strict=False))
    alike = [a for a, p in pairs if _is_curve(p.grid) or "placement" in _varied(p.grid)]
    if alike and len({p.grid.task for _, p in pairs}) == 1:
        limits = [limit for a in alike for limit in a.get_ylim()]
        for axis in alike:
            axis.set_ylim(min(limits), max(limits))
            if len({p.grid.label for _, p in pairs}) == 1:  # and one horizontal axis
                axis.label_outer()


def _varied(grid: Grid) -> set[str]:
    return {axis for axis, values in grid.axes.items() if len(values) > 1}


def _draw(axis: Any, grid: Grid, own: Sequence[Summary], looks: dict[str, Look]) -> None:
    for i, method in enumerate(grid.methods):
        colour, marker, line = looks[method.label]
        points = _points(grid, [s for s in own if s.group.method is method])
        if not points:
            continue
        scale = 100 if metric(grid.task).percent else 1
        x, *values = zip(*sorted(points), strict=True)
        mean, low, high = ([scale * v for v in row] for row in values)
        if grid.along == "digit":
            width = 0.8 / len(grid.methods)
            x = tuple(d + width * (i - (len(grid.methods) - 1) / 2) for d in x)
            axis.bar(x, mean, width, color=colour, label=method.label)
            axis.vlines(x, low, high, color="#8c8c8c", linewidth=1.2)
            continue
        axis.plot(x, mean, line, marker=marker, color=colour, label=method.label, markersize=5)
        if _is_curve(grid):
            axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        else:
            axis.vlines(x, low, high, color=colour, linewidth=1.2)
    _finish(axis, grid, own)


def _points(grid: Grid, own: Sequence[Summary]) -> list[Point]:
    """Place on the horizontal axis, mean, lowest and highest metric."""
    if _is_curve(grid):
        return [point for s in own for point in s.curve(grid.along)]
    if grid.along == "digit":
        by_digit = [of for s in own for of in zip(*s.recalls, strict=True)]
        return [(float(d), sum(v) / len(v), min(v), max(v)) for d, v in enumerate(by_digit)]
    points = []
    for s in own:
        if s.mean is not None:
            x = s.group.point[grid.along]
            if grid.along == "dirichlet":
                x = _alphas(grid).index(x)
            points.append((float(x), s.mean, min(s.values), max(s.values)))
    return points


def _is_curve(grid: Grid) -> bool:
    return grid.along in _CURVES


def _alphas(grid: Grid) -> list[float | None]:
    """The concentrations in ascending order; what is shuffled is the most even of all."""
    return [*sorted(a for a in grid.axes["dirichlet"] if a is not None), None]


def _finish(axis: Any, grid: Grid, own: Sequence[Summary]) -> None:
    told = ALSO["recall"] if grid.along == "digit" else metric(grid.task)
    axis.set(xlabel=_ALONG[grid.along], ylabel=told.heading)
    if grid.along in ("batch_size", "sent"):
        axis.set_xscale("log", base=2 if grid.along == "batch_size" else 10)
    if grid.along in ("batch_size", "ranks", "adversaries"):
        ticks = sorted(grid.axes[grid.along])
        axis.set_xticks(ticks, [str(t) for t in ticks])
        axis.minorticks_off()
    if grid.along == "digit":
        axis.set_xticks(range(10))
    if grid.along == "dirichlet":
        names = [axis_value("dirichlet", a) for a in _alphas(grid)]
        axis.set_xticks(range(len(names)), names)
    values = [v for s in own for v in s.values]
    if grid.task == "quadratic" and values and max(values) > 20 * min(values) > 0:
        axis.set_yscale("log")
    axis.grid(True, color="#dddddd", linewidth=0.7)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_axisbelow(True)
