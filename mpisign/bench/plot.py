"""How every bench's picture looks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from mpisign.experiments.errors import SettingsError

# Okabe and Ito's colours, which colour-blind people can distinguish; shapes differ as well.
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
AMBER, SKY, YELLOW, BLACK = "#E69F00", "#56B4E9", "#F0E442", "#000000"
GREY, LIGHT = "#666666", "#bbbbbb"
SMALL: dict[str, Any] = {"fontsize": 8.5, "frameon": False}
#: A legend above the axes.
ABOVE: dict[str, Any] = {**SMALL, "loc": "lower center", "bbox_to_anchor": (0.5, 1)}
#: Label, marker ("|" for limits and goals), colour, and x in each row or None.
Series = tuple[str, str, str, Sequence[float | None]]


def figure(width: float, height: float, title: str) -> Any:
    """An empty figure, its size in inches."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), dpi=150, layout="constrained")
    made.suptitle(title, fontsize=11, x=0.01, ha="left")
    return made


def measured(rows: Sequence[Any], why: str = "nothing was measured") -> None:
    """Raises SettingsError if ``rows`` is empty."""
    if not rows:
        raise SettingsError(f"--plot: {why}")


def finish(axis: Any) -> None:
    """A light grid behind the data, no frame."""
    axis.grid(True, color="#dddddd", linewidth=0.7)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_axisbelow(True)


def rows(axis: Any, labels: Sequence[str], *series: Series, joined: Iterable[Any] = ()) -> None:
    """A row for each label, the first at the top. ``joined``: ends of a light line in each row."""
    for label, marker, colour, values in series:
        points = [(x, y) for y, x in enumerate(values) if x is not None]
        if points:
            size, edge = (16, 2) if marker == "|" else (6, 1)
            x, y = zip(*points, strict=True)
            looks = {"color": colour, "markersize": size, "markeredgewidth": edge, "zorder": 4}
            axis.plot(x, y, marker, label=label, **looks)
    for row, ends in enumerate(joined):
        if None not in ends:
            axis.plot(ends, [row, row], color=LIGHT, linewidth=1.5, zorder=1)
    axis.set_yticks(range(len(labels)), labels, fontsize=8.5)
    axis.set_ylim(len(labels) - 0.4, -0.6)


def beside(axis: Any, text: str, x: float, y: float) -> None:
    """Small text at the right of a point."""
    axis.annotate(text, (x, y), (7, 0), textcoords="offset points", va="center", fontsize=8)


def in_seconds(axis: Any, subs: tuple[float, ...] = (1.0, 2.0, 5.0)) -> None:
    """Ticks of an x or y axis on a log scale: 1 ms, 2 ms, 5 ms."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    if subs:
        axis.set_major_locator(LogLocator(10, subs=subs, numticks=12))
        axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(EngFormatter("s", sep=" "))


def in_percent(axis: Any) -> None:
    """Ticks of an x or y axis: 50 %."""
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
