"""Pictures: the curves of ``mpisign train``, and the panels of a study's results."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpisign.experiments.cell import GROUPED
from mpisign.experiments.file import Grid, Method, Study
from mpisign.experiments.results import Point, Summary
from mpisign.experiments.tables import axis_value, varying
from mpisign.experiments.tasks import ALSO, metric

if TYPE_CHECKING:
    from mpisign.experiments.compare import Result


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
    by_attack = [grid for grid in study.grids if {"attack", "placement"} <= {*_split(grid)}]
    named = len(by_attack) > 1
    found = [panel for grid in study.grids for panel in _of(grid, summaries, named)]
    side = _COLUMNS
    if len(study.grids) == 1 and _split(study.grids[0]) == ["attack", "placement"]:
        side = min(_WIDE, len(study.grids[0].axes["attack"]))
    elif all(_split(grid) == ["placement"] for grid in study.grids):
        side = len(study.grids[0].axes["placement"])
    return found, min(len(found), side)


def _of(grid: Grid, summaries: Sequence[Summary], named: bool) -> list[Panel]:
    """A panel for each combination of what is split, a row of them for each placement.

    ``named``: an attack alone does not say which grid it is of.
    """
    own = [s for s in summaries if s.group.grid is grid]
    split = sorted(_split(grid), key=lambda axis: axis != "placement")
    found = []
    for values in itertools.product(*(grid.axes[axis] for axis in split)):
        place = dict(zip(split, values, strict=True))
        part = [s for s in own if all(_is_at(s, *at) for at in place.items())]
        if "placement" in place:
            title = f"{place.get('attack', grid.label)}, {place['placement']} placement"
            title = f"{grid.label}: {title}" if named and "attack" in place else title
        else:
            points = [f"{_SHORT.get(a, a)} {axis_value(a, v)}" for a, v in place.items()]
            title = ", ".join([grid.label, *points])
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


# Okabe and Ito's colours, which colour-blind people can tell apart; markers and dashes differ too.
_COLOURS: tuple[str, ...] = (
    *("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C8C8C"),
    "#882255",
)
_MARKERS = "os^Dv<>PX"
_GREY = "#8c8c8c"
#: Averages are dashed, with dashes that fill each other's gaps, as all averages give one curve.
_LOOKS: dict[str, tuple[str, Any]] = {
    "mpi-fp32": (_COLOURS[6], (0, (3, 6))),
    "mpi-vote": (_COLOURS[1], "-"),
    "torch-fp32": (_COLOURS[0], (3, (3, 6))),
    "torch-vote": (_COLOURS[3], (0, (2, 2))),
    "horovod-fp32": (_COLOURS[5], (6, (3, 6))),
    "horovod-counters": (_COLOURS[4], "-"),
    "horovod-planes": (_COLOURS[2], "-"),
}
_ALONG = {
    "batch_size": "batch size of a rank",
    "ranks": "ranks",
    "adversaries": "hostile ranks",
    "dirichlet": "Dirichlet alpha (labels ever more alike on all ranks)",
    "step": "steps",
    "round": "exchanges",
    "sent": "bytes that a rank sent",
    "bits": "bits of a rank's message in a step, for each coordinate",
    "bytes": "bytes of a rank's messages, one copy, without headers",
    "digit": "digit",
}
_CURVES = ("step", "round", "sent", "bytes")

Look = tuple[str, str, str]  # colour, marker, line


def write_curves(path: Path, results: Sequence[Result], title: str) -> None:
    """Draws test accuracy of all variants against steps and, on several ranks, bytes sent."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, PercentFormatter

    sent = any(r.sent > 0 for r in results)
    figure = Figure(figsize=(11 if sent else 6, 4.6), dpi=150, layout="constrained")
    axes = figure.subplots(1, 2 if sent else 1, sharey=True, squeeze=False)[0]
    for r in results:
        colour, line = _LOOKS.get(r.way, ("#000000", "-"))
        style = {"color": colour, "linestyle": line, "linewidth": 2, "label": r.label}
        right = [p["accuracy"] for p in r.curve]
        axes[0].plot([p["step"] for p in r.curve], right, **style)
        if sent:
            # Nothing is sent before the first step, and a logarithm has no place for that.
            crossed = [p["sent"] for p in r.curve]
            axes[1].plot(crossed[1:], right[1:], **style)
            axes[1].plot(crossed[-1:], right[-1:], "o", color=colour, markersize=6)
    axes[0].set(xlabel="steps", ylabel="test accuracy", ylim=(0, 1))
    axes[0].set_xlim(left=0)
    axes[0].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    if sent:
        axes[1].set(xlabel="bytes sent per rank", xscale="log")
        axes[1].xaxis.set_major_formatter(EngFormatter("B"))
    for axis in axes:
        _tidy(axis)
    axes[0].legend(loc="lower right", frameon=True, framealpha=0.9, edgecolor="none")
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    figure.savefig(path)


def _tidy(axis: Any, grid: str = "both") -> None:
    axis.grid(True, axis=grid, color="#dddddd", linewidth=0.7)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_axisbelow(True)


def write_study(path: Path, study: Study, summaries: Sequence[Summary]) -> None:
    """Draws means of the seeds with bars or bands from the lowest to the highest, into ``path``."""
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
            _draw_methods(axis, panel, {label: look[0] for label, look in looks.items()})
        else:
            _draw(axis, panel.grid, panel.own, looks)
        axis.set_title(panel.title, fontsize=10, loc="left")
    _level(axes, all_panels)
    for axis in axes[len(all_panels) :]:
        axis.set_axis_off()
    handles = {
        label: h for a in axes for h, label in zip(*a.get_legend_handles_labels(), strict=True)
    }
    how: dict[str, Any] = {"loc": "outside lower center", "ncols": 1 + 2 * columns, "fontsize": 8.5}
    figure.legend(handles.values(), handles.keys(), frameon=False, **how)
    figure.suptitle(study.title, fontsize=12, x=0.01, ha="left")
    figure.savefig(path)


def _looks(study: Study) -> dict[str, Look]:
    """How each method is drawn."""
    methods = {_curve(g, m): m for g in study.grids for m in g.methods}
    grouped = any(m.compressor == GROUPED for m in methods.values())
    free = iter(zip(itertools.cycle(_COLOURS), itertools.cycle(_MARKERS), strict=False))
    whole: dict[str, tuple[str, str]] = {}  # a method of a share of the ranks looks like it, dashed
    looks = {}
    for label, m in methods.items():
        if m.participation is not None and (same := f"{m.compressor} {m.options}") in whole:
            looks[label] = (*whole[same], "--")
            continue
        look = next(free)
        if m.participation is None:
            whole[f"{m.compressor} {m.options}"] = look
        looks[label] = (*look, "--" if grouped and m.compressor != GROUPED else "-")
    return looks


def _level(axes: Any, all_panels: Sequence[Panel]) -> None:
    """One scale for panels that are to be compared."""
    pairs = list(zip(axes, all_panels, strict=False))
    alike = [a for a, p in pairs if p.grid.along in _CURVES or "placement" in varying(p.grid)]
    if alike and len({p.grid.task for _, p in pairs}) == 1:
        limits = [limit for a in alike for limit in a.get_ylim()]
        for axis in alike:
            axis.set_ylim(min(limits), max(limits))
            if len({p.grid.label for _, p in pairs}) == 1:  # and one horizontal axis
                axis.label_outer()


def _draw(axis: Any, grid: Grid, own: Sequence[Summary], looks: dict[str, Look]) -> None:
    for i, name in enumerate(dict.fromkeys(_curve(grid, m) for m in grid.methods)):
        colour, marker, line = looks[name]
        points = _points(grid, [s for s in own if _curve(grid, s.group.method) == name])
        if not points:
            continue
        scale = 100 if metric(grid.task).percent else 1
        x, *values = zip(*sorted(points), strict=True)
        mean, low, high = ([scale * v for v in row] for row in values)
        if grid.along == "digit":
            width = 0.8 / len(grid.methods)
            x = tuple(d + width * (i - (len(grid.methods) - 1) / 2) for d in x)
            axis.bar(x, mean, width, color=colour, label=name)
            axis.vlines(x, low, high, color=_GREY, linewidth=1.2)
            continue
        axis.plot(x, mean, line, marker=marker, color=colour, label=name, markersize=5)
        if grid.along in _CURVES:
            axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        else:
            axis.vlines(x, low, high, color=colour, linewidth=1.2)
    _finish(axis, grid, own)


def _curve(grid: Grid, method: Method) -> str:
    """What a method's points are joined as: one method, but that along bits a method is a point."""
    return method.curve if grid.along == "bits" else method.label


def _points(grid: Grid, own: Sequence[Summary]) -> list[Point]:
    """Place on the horizontal axis, mean, lowest and highest metric."""
    if grid.along in _CURVES:
        return [point for s in own for point in s.curve(grid.along)]
    if grid.along == "digit":
        by_digit = [of for s in own for of in zip(*s.recalls, strict=True)]
        return [(float(d), sum(v) / len(v), min(v), max(v)) for d, v in enumerate(by_digit)]
    points = []
    for s in own:
        if s.mean is not None:
            x: Any = s.code_bits if grid.along == "bits" else s.group.point[grid.along]
            if grid.along == "dirichlet":
                x = _alphas(grid).index(x)
            points.append((float(x), s.mean, min(s.values), max(s.values)))
    return points


def _alphas(grid: Grid) -> list[float | None]:
    """The concentrations in ascending order; what is shuffled is the most even of all."""
    return [*sorted(a for a in grid.axes["dirichlet"] if a is not None), None]


def _finish(axis: Any, grid: Grid, own: Sequence[Summary]) -> None:
    shown = ALSO["recall"] if grid.along == "digit" else metric(grid.task)
    along = _ALONG[grid.along]
    if grid.along == "step" and all(m.recipe == "federated" for m in grid.methods):
        along = "rounds"
    axis.set(xlabel=along, ylabel=shown.heading)
    if grid.along in ("batch_size", "sent", "bits", "bytes"):
        axis.set_xscale("log", base=2 if grid.along == "batch_size" else 10)
    if grid.along in ("batch_size", "ranks", "adversaries"):
        ticks = sorted(grid.axes[grid.along])
        axis.set_xticks(ticks, [str(t) for t in ticks])
        axis.minorticks_off()
    if grid.along == "bits":
        axis.xaxis.set_major_formatter("{x:g}")
        least = min(s.code_bits for s in own if s.code_bits)
        axis.set_xlim(least / 1.3, max(10 * least, axis.get_xlim()[1]))  # a decade has its ticks
    if grid.along == "digit":
        axis.set_xticks(range(10))
    if grid.along == "dirichlet":
        names = [axis_value("dirichlet", a) for a in _alphas(grid)]
        axis.set_xticks(range(len(names)), names)
    values = [v for s in own for v in s.values]
    if grid.task == "quadratic" and values and max(values) > 20 * min(values) > 0:
        axis.set_yscale("log")
    _tidy(axis)


def _draw_methods(axis: Any, panel: Panel, colours: Mapping[str, str]) -> None:
    """Marks of the mean, bars from lowest to highest; hollow: no adversaries; crosses: ``also``."""
    grid = panel.grid
    labels = [m.label for m in grid.methods]
    for s in panel.own:
        y = len(labels) - 1 - labels.index(s.group.method.label)
        without = s.group.point["adversaries"] == 0 and max(grid.axes["adversaries"]) > 0
        colour = colours[s.group.method.label]
        if s.values:
            _mark(axis, y, list(s.values), colour, "o", without)
        for name in grid.also:
            if name != "recall" and s.also(name):
                _mark(axis, y - 0.22, s.also(name), colour, "X", without)
    axis.set_yticks(range(len(labels)), labels[::-1])
    axis.set(xlim=(-4, 104), ylim=(-0.7, len(labels) - 0.4))
    shown = [(metric(grid.task).name, "o")]
    shown += [(ALSO[name].name, "X") for name in grid.also if name != "recall"]
    for name, marker in shown:
        axis.plot([], [], marker, color=_GREY, linestyle="none", label=name)
    if len(grid.axes["adversaries"]) > 1:
        look = {"color": _GREY, "markerfacecolor": "white", "linestyle": "none"}
        axis.plot([], [], "s", label="hollow: without hostile ranks", **look)
    axis.set_xlabel("accuracy, %")
    _tidy(axis, "x")


def _mark(axis: Any, y: float, values: list[float], colour: str, marker: str, hollow: bool) -> None:
    low, mean, high = (100 * v for v in (min(values), sum(values) / len(values), max(values)))
    axis.plot([low, high], [y, y], color=colour, linewidth=1.2, alpha=0.4 if hollow else 1)
    face = "white" if hollow else colour
    axis.plot(mean, y, marker, color=colour, markerfacecolor=face, markersize=6.5, linestyle="none")
