"""Work of a step as ranks become more: in groups, without, and ByzFL's in one place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpisign.bench.detox.results import Row
from mpisign.bench.errors import BenchError
from mpisign.bench.table import coordinates, seconds

if TYPE_CHECKING:
    from mpisign.bench.detox.run import Record

# Okabe and Ito's colours, which colour-blind people tell apart too; lines differ as well.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_SIGNS = "#666666"


def write(path: Path, record: Record) -> None:
    """Draws two panels into ``path``: all work, and what of it is computing."""
    from matplotlib.figure import Figure

    rows = [row for row in record.rows if row.work]
    if not rows:
        raise BenchError("--plot: nothing was measured")
    figure = Figure(figsize=(12.4, 5.2), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    of_collectives = [row for row in rows if row.way.kind in ("vote", "robust")]
    _panel(left, of_collectives, record, lambda row: row.work.median if row.work else None)
    left.set_title("all work of all ranks, messages with it", fontsize=10, loc="left")
    _panel(right, rows, record, lambda row: row.computing)
    right.set_title(
        "computing alone: packing, hashing, rules, tallies, unpacking", fontsize=10, loc="left"
    )
    handles, labels = right.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=8, frameon=False)
    figure.suptitle(
        f"A step's work on {coordinates(record.parameters)} parameters, simulated ranks, one core",
        fontsize=11,
        x=0.01,
        ha="left",
    )
    figure.savefig(path)


def _panel(
    axis: Any, rows: Sequence[Row], record: Record, value: Callable[[Row], float | None]
) -> None:
    colours = dict(zip(record.settings.rules, _COLOURS * 2, strict=False))
    for label in dict.fromkeys(row.way.label for row in rows):
        mine = [row for row in rows if row.way.label == label and value(row)]
        if not mine:
            continue
        way = mine[0].way
        style = {"here": (":", "x"), "byzfl": ("-.", "+")}.get(
            way.kind, ("-", "o") if way.groups else ("--", "s")
        )
        axis.plot(
            [row.ranks for row in mine],
            [value(row) for row in mine],
            linestyle=style[0],
            marker=style[1],
            color=colours.get(way.rule, _SIGNS),
            linewidth=1.5,
            markersize=5,
            label=label,
        )
    ranks = record.settings.ranks
    low = min(found for row in rows if (found := value(row)))
    for power, told in ((1, "p"), (2, "p²")):
        line = [0.8 * low * (p / ranks[0]) ** power for p in ranks]
        axis.plot(ranks, line, color="#bbbbbb", linewidth=1, zorder=0)
        if len(ranks) > 1:
            axis.annotate(f"∝ {told}", (ranks[-1], line[-1]), fontsize=8, color="#777777")
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xticks(ranks, [str(p) for p in ranks])
    axis.minorticks_off()
    axis.yaxis.set_major_formatter(lambda value, _: seconds(value).replace(".00", ""))
    axis.set_xlabel("ranks p")
    axis.grid(True, color="#dddddd", linewidth=0.7)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_axisbelow(True)
