"""Tables, sentences and the picture of ``mpisign predict``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from mpisign.bench import plot
from mpisign.bench.collectives.nodes import rate
from mpisign.bench.report import Shown
from mpisign.bench.table import Table, amount, grouped, seconds, times
from mpisign.predict.methods import FP16, METHODS
from mpisign.predict.reasons import in_words

#: Colours and lines of the methods.
LOOKS = {
    "fp32": (plot.AMBER, "--"),
    FP16: (plot.ORANGE, "-"),
    "allgather-vote": (plot.SKY, "-"),
    "alltoall-vote": (plot.BLUE, "-"),
    "hierarchical": (plot.GREEN, "-"),
    "ef_sign": (plot.PURPLE, "-"),
    "PowerSGD": (plot.GREY, "--"),
}
_WIDTH = 8.6  # inches, at least
_RATES = {
    "pack": "pack, with signum's momentum",
    "tally": "tally, of one plane",
    "unpack": "unpack",
    "pack_error_feedback": "pack with error feedback (ef_sign)",
    "sum_signs": "mean of scaled signs, of one plane",
    "copy": "copy of float32",
    "cast": "cast to fp16 and back",
    "sum_fp32": "add in fp32",
    "sum_fp16": "add in fp16",
    "powersgd": "PowerSGD's work",
}


def _tables(record: Any) -> Iterator[Table]:
    if not record.rows:
        return
    yield _steps(record)
    yield _bytes(record)
    words = [
        (f"{v.ranks:,}", rate(v.bandwidth), f"{times(v.gain)}", in_words(v))
        for v in record.verdicts
    ]
    yield Table("where a vote pays", ("ranks", "bandwidth", "gain", "note"), words)
    yield _measured(record)


def _title(record: Any) -> str:
    s = record.settings
    each = f"{s.ranks_per_node} ranks a node" if s.ranks_per_node > 1 else "a rank a node"
    how = "with overlap" if s.overlap else "without overlap"
    named = f"{record.model_name}, " if "parameters" not in record.model_name else ""
    return f"{named}{record.parameters:,} parameters, {each}, {how}"


def _steps(record: Any) -> Table:
    names = [m.name for m in METHODS if any(row.method == m.name for row in record.rows)]
    rows = []
    for (ranks, bandwidth), of in grouped(record.rows, "ranks", "bandwidth").items():
        cells = {row.method: seconds(row.step.seconds) for row in of}
        rows.append([f"{ranks:,}", rate(bandwidth), *(cells.get(name, "") for name in names)])
    title = f"{_title(record)}: seconds per step"
    return Table(title, ["ranks", "bandwidth", *names], rows)


def _bytes(record: Any) -> Table:
    """Where the time goes, at the largest number of ranks and the lowest bandwidth."""
    last = record.rows[-1].ranks
    lowest = min(row.bandwidth for row in record.rows)
    rows = [
        (
            row.method, seconds(row.step.seconds), times(row.faster), seconds(row.step.computes),
            seconds(row.step.wire), seconds(row.step.hidden) if row.step.hidden else "",
            amount(row.step.sent),
        )
        for row in record.rows
        if (row.ranks, row.bandwidth) == (last, lowest)
    ]  # fmt: skip
    title = f"where a step's time goes: {last:,} ranks, {rate(lowest)}"
    heads = ("method", "step", "x fp16", "computes", "wire", "hidden", "sent")
    return Table(title, heads, rows).filled()


def _measured(record: Any) -> Table:
    sources, compute = record.sources, record.compute
    rows = []
    if compute.step:
        source = sources["step without communication"]
        rows.append(("a step without communication", seconds(compute.step), source))
        rows.append(("of it backward", seconds(compute.backward), ""))
    for name, value in asdict(record.rates).items():
        if value is not None:
            shown = f"{value * 1e9:#.3g} ns a coordinate"
            rows.append((_RATES[name], shown, sources.get(name, "")))
    rows.append(("an exchange between nodes", seconds(record.remote.latency), sources["latency"]))
    if record.remote.per_message:
        rows.append(
            ("each further message", seconds(record.remote.per_message), record.remote.where)
        )
    if record.remote.bandwidth:
        rows.append(("into a node", rate(record.remote.bandwidth), sources["bandwidth"]))
    if record.remote.share < 1:
        what = "of a bandwidth, where each exchanges with all"
        rows.append((what, f"{record.remote.share:.0%}", sources["bandwidth"]))
    if record.settings.ranks_per_node > 1 and record.local is not None:
        local = record.local
        rows.append(("an exchange within a node", seconds(local.latency), local.where))
        rows.append(("into a rank within a node", rate(local.bandwidth), local.where))
    return Table("what the prediction is made of", ("quantity", "measured", "note"), rows)


def _notes(record: Any) -> Iterator[str]:
    for even in record.break_evens:
        if even.bandwidth is None:
            where = "faster than the rings at any bandwidth"
        elif not even.bandwidth:
            where = "not faster than the rings at any bandwidth"
        else:
            where = f"faster than the rings up to {rate(even.bandwidth)}"
        yield f"{even.ranks:,} ranks: the best vote is {where}."
    yield (
        "x fp16: times less time than the 16-bit ring; gain: of the best vote, than the faster of "
        "the two rings. computes: packing, counting, casts, sums, "
        "on the device of the gradients; wire: the network's time; hidden: of it behind backward; "
        "sent: by a rank. The model and its limits: docs/performance.md."
    )


def _draw(record: Any) -> Any:
    """Seconds over bandwidths, a panel for each number of ranks."""
    plot.measured(record.curves)
    panels = grouped(record.curves, "ranks")
    width = max(_WIDTH, 1.2 + 4.0 * len(panels))  # of title and legend, else of the panels
    figure = plot.figure(width, 4.8, f"Predicted step: {_title(record)}")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    evens = {even.ranks: even.bandwidth for even in record.break_evens}
    for axis, ((ranks,), curves) in zip(axes, panels.items(), strict=True):
        for curve in curves:
            colour, line = LOOKS[curve.method]
            bits = [8 * b for b in curve.bandwidths]
            axis.plot(bits, curve.seconds, line, color=colour, linewidth=1.6, label=curve.method)
        axis.set(xscale="log", yscale="log")
        _in_bits(axis.xaxis, bits[-1] / bits[0])
        plot.in_seconds(axis.yaxis)
        axis.set_xlabel("a node's link, each way", fontsize=8.5)
        axis.set_title(f"{ranks:,} ranks", fontsize=10, loc="left")
        even = evens.get(ranks)
        if even and curves[0].bandwidths[0] < even < curves[0].bandwidths[-1]:
            axis.axvline(8 * even, color=plot.BLACK, linewidth=0.8, linestyle=":")
            axis.annotate(
                f"votes pay\nbelow {rate(even)}", (8 * even, 0.02), (-4, 0),
                xycoords=("data", "axes fraction"), textcoords="offset points", fontsize=7.5,
                ha="right", va="bottom",
            )  # fmt: skip
        if record.compute.step:
            axis.axhline(record.compute.step, color=plot.LIGHT, linewidth=1, zorder=1)
        plot.finish(axis)
    axes[0].set_ylabel("seconds per step", fontsize=8.5)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, **plot.SMALL, loc="outside lower center", ncols=len(labels))
    return figure


def _in_bits(axis: Any, range_: float) -> None:
    """Four ticks or so: 1, 2 and 5 of a power of ten, or powers alone."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    subs = (1.0, 2.0, 5.0) if range_ < 100 else (1.0,)
    axis.set_major_locator(LogLocator(10, subs=subs, numticks=5))
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(EngFormatter("bit/s", sep=" "))
    axis.get_label().set_fontsize(8)


SHOWN = Shown(_tables, _notes, _draw)
