"""A panel with a row a method: the metric, and what is told beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mpisign.study.panels import Panel
from mpisign.study.tasks import metric
from mpisign.study.tasks.metric import ALSO


def draw_methods(axis: Any, panel: Panel, colours: Mapping[str, str]) -> None:
    """Marks of all seeds' mean, bars from the lowest to the highest; hollow: without adversaries.

    Round: the task's metric; crosses: each of ``grid.also`` that is one figure a training.
    """
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
    told = [(metric(grid.task).name, "o")]
    told += [(ALSO[name].name, "X") for name in grid.also if name != "recall"]
    for name, marker in told:
        axis.plot([], [], marker, color="#8c8c8c", linestyle="none", label=name)
    if len(grid.axes["adversaries"]) > 1:
        look = {"color": "#8c8c8c", "markerfacecolor": "white", "linestyle": "none"}
        axis.plot([], [], "s", label="hollow: without hostile ranks", **look)
    axis.set_xlabel("accuracy, %")
    axis.grid(True, axis="x", color="#dddddd", linewidth=0.7)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_axisbelow(True)


def _mark(axis: Any, y: float, values: list[float], colour: str, marker: str, hollow: bool) -> None:
    low, mean, high = (100 * v for v in (min(values), sum(values) / len(values), max(values)))
    axis.plot([low, high], [y, y], color=colour, linewidth=1.2, alpha=0.4 if hollow else 1)
    face = "white" if hollow else colour
    axis.plot(mean, y, marker, color=colour, markerfacecolor=face, markersize=6.5, linestyle="none")
