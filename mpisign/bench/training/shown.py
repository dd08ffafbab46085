"""What ``mpisign bench training`` shows: a table, notes and a picture of each mode."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any

from mpisign.bench import plot
from mpisign.bench.report import Shown
from mpisign.bench.table import Table, amount, of_goals, seconds, spread
from mpisign.bench.training.names import BASE, NONE
from mpisign.bench.training.results import GOALS

_STEP = ("method", "step", "+-", "x none", "+-", "x fp16", "on link", "sent", "cpu", "replicas")
_ACCURACY = (
    "method", "lr", "steps to", "seconds to", "x fp16", "final", "+-", "step", "on link", "replicas"
)  # fmt: skip
_MEMORY = ("method", "state", "traced", "planes", "limit", "resident", "planes", "replicas")
_CURVES = (plot.BLUE, plot.GREEN, plot.SKY, plot.PURPLE, plot.YELLOW, plot.BLACK)
_PEERS = {BASE: plot.ORANGE, "horovod-fp32": plot.AMBER}


def _tables(record: Any) -> Iterator[Table]:
    """The rows that have figures, and the goals."""
    s = record.settings
    model = f"{record.parameters:,} parameters in {s.layers} hidden layers"
    batch = f"batches of {s.batch_size} a rank"
    what = "learning rates" if s.mode == "tune" else "time"
    heads, cells, title = {
        "step": (_STEP, _step, f"{model}, {batch}: seconds per step"),
        "memory": (
            _MEMORY, _memory,
            f"{model}: memory of a step beyond parameters, gradients and stated state",
        ),
    }.get(
        s.mode,
        (_ACCURACY, _accuracy, f"{model}, {batch}: {what} to {s.accuracy:.1%} in {s.steps} steps"),
    )  # fmt: skip
    missing = [(row.method, f"not run: {row.error}") for row in record.rows if row.error]
    rows = [cells(row) for row in record.rows if not row.error]
    yield Table(title, heads, rows, missing).filled()
    yield from of_goals(record.goals)


def _step(row: Any) -> list[str]:
    return [
        row.method, seconds(row.time.median), spread(row.time, 1),
        "" if row.ratio is None else f"{row.ratio.median:.3f}", spread(row.ratio, 1),
        "" if row.faster is None else f"{row.faster.median:#.3g}", amount(row.counted),
        amount(row.blocks[0].sent) if row.ours else "", seconds(row.cpu), _replicas(row),
    ]  # fmt: skip


def _accuracy(row: Any) -> list[str]:
    counted = [r.counted for r in row.runs if r.counted is not None]
    reached = sum(r.first(row.wanted) is not None for r in row.runs)
    return [
        row.method, f"{row.lr:g}",
        f"{reached} of {len(row.runs)}" if row.steps is None else f"{row.steps:.0f}",
        "" if row.seconds is None else f"{row.seconds:#.3g} s",
        "" if row.less is None else f"{row.less:#.3g}", f"{fmean(row.final):.2%}",
        "" if len(row.runs) < 2 else f"{(max(row.final) - min(row.final)) / 2:.2%}",
        seconds(row.seconds_per_step), amount(fmean(counted) if counted else None), _replicas(row),
    ]  # fmt: skip


def _memory(row: Any) -> list[str]:
    def planes(nbytes: float | None) -> str:
        return "" if nbytes is None else f"{nbytes / row.plane:.2f}"

    traced = row.traced if row.ours else None
    return [
        row.method, amount(row.state), amount(traced), planes(traced), planes(row.limit),
        amount(row.resident), planes(row.resident), _replicas(row),
    ]  # fmt: skip


def _replicas(row: Any) -> str:
    return "" if row.identical is None else "equal" if row.identical else "DIFFER"


def _notes(record: Any) -> Iterator[str]:
    mode = record.settings.mode
    yield _COLUMNS[mode]
    names = [row.method for row in record.rows]
    if "ddp-powersgd" in names:
        yield (
            "ddp-powersgd: rank 1, from the third step on, error feedback, warm start; in one "
            "bucket, as in several torch's hook hangs on Gloo."
        )
    if mode == "memory" and any(name.startswith("ddp") for name in names):
        yield "DDP keeps every gradient twice, in its buckets too: 32 planes of resident."
    apart = [row.method for row in record.rows if row.identical is False]
    if apart:
        yield f"ERROR: REPLICAS DIFFER after {', '.join(apart)}: its figures mean nothing."


_ACCURACY_COLUMNS = (
    "steps to, seconds to: until the accuracy on the test digits is reached, mean over the seeds "
    "(n of m: it is not, with some), evaluation not counted; x fp16: how many times less time than "
    "Horovod's fp16; final: at the end of the schedule (half a cosine), mean; +- half the distance "
    "between the best and the worst seed; step: mean; on link: a step's bytes at each node's "
    "interface, each way; replicas: whether all ranks' parameters are equal, bit for bit."
)
_COLUMNS = {
    "step": "step: forward, backward, exchange and update, of the slowest rank, median of the "
    "rounds; +- half the quartiles' distance; x none: to the same step without any communication "
    "in the same round; x fp16: how many times faster than Horovod's with fp16; on link: counted "
    "at each node's interface, each way; sent: by a rank, as mpisign.stats() counts it; cpu: "
    "processor time of a rank, all threads; replicas: whether all ranks' parameters are equal, bit "
    "for bit.",
    "accuracy": _ACCURACY_COLUMNS,
    "tune": _ACCURACY_COLUMNS + " The first row of each method has the fewest steps among those "
    "whose final accuracy is within 0.5 points of its best.",
    "memory": "Of the rank that needs most, peak during a step beyond the same of the step without "
    "communication. state: what a checkpoint holds of momenta and residuals, torch's included; "
    "traced: by Python's tracemalloc, all of NumPy's memory; resident: by the kernel, all "
    "libraries' memory, state left out; planes: in planes of d / 8 bytes; limit: one plane and the "
    "largest bucket's gradients, of methods with several buckets.",
}


def _draw(record: Any) -> Any:
    """Seconds of a step, accuracy against time, or memory."""
    rows = [row for row in record.rows if not row.error]
    plot.measured(rows)
    draw, what = {
        "step": (_draw_steps, "Time of a training step, median of the rounds"),
        "memory": (_draw_memory, "Peak of NumPy's and Python's memory in a step"),
    }.get(
        record.settings.mode,
        (_draw_accuracy, "Test accuracy against time, each seed and their mean"),
    )
    batch = record.settings.batch_size
    model = f"{record.parameters / 1e6:.3g} M parameters, batches of {batch} a rank"
    height = 4.8 if draw is _draw_accuracy else 1.5 + 0.36 * len(rows)
    figure = plot.figure(8.4, height, f"{what}\n{model}, {record.nodes}")
    axis = figure.subplots()
    draw(axis, rows)
    plot.finish(axis)
    return figure


def _draw_steps(axis: Any, rows: Sequence[Any]) -> None:
    """A bar a method, the fastest at the top, beside the step without communication."""
    rows = sorted((r for r in rows if r.time), key=lambda row: row.time.median)
    for y, row in enumerate(rows):
        t = row.time
        colour = plot.GREY if row.method == NONE else plot.BLUE if row.ours else plot.ORANGE
        half = (t.high - t.low) / 2
        axis.barh(y, t.median, color=colour, height=0.66, xerr=half, ecolor="#444444")
        if row.ratio is not None and row.method != NONE:
            plot.beside(axis, f"{row.ratio.median:.2f} x none", t.high, y)
    base = next((r.time.median for r in rows if r.method == NONE), None)
    if base is not None:
        axis.axvline(base, color=plot.GREY, linewidth=1, linestyle=":", label="no communication")
        goal = max(GOALS.values())
        label = f"the goal of hooks: {goal:g} x none"
        axis.axvline(goal * base, color=plot.BLACK, linewidth=1, linestyle="--", label=label)
        axis.legend(**plot.ABOVE, ncols=3)
    plot.rows(axis, [row.method for row in rows])
    axis.set_xlim(0, 1.14 * max(r.time.high for r in rows))
    plot.in_seconds(axis.xaxis, ())


def _draw_accuracy(axis: Any, rows: Sequence[Any]) -> None:
    """Each seed's curve thin, their mean thick, on a scale on which a factor is a distance."""
    colours = iter(_CURVES * len(rows))
    for row in rows:
        colour = _PEERS.get(row.method) or next(colours)
        for run in row.runs:
            x, y = [p.seconds for p in run.curve], [p.accuracy for p in run.curve]
            axis.plot(x, y, color=colour, linewidth=0.6, alpha=0.5)
        points = list(zip(*(run.curve for run in row.runs), strict=True))
        label = f"{row.method}, lr {row.lr:g}"
        if row.seconds is not None:
            label += f": {row.seconds:#.3g} s"
            axis.plot(row.seconds, row.wanted, "o", color=colour, markersize=7, zorder=4)
        x = [fmean(p.seconds for p in at) for at in points]
        y = [fmean(p.accuracy for p in at) for at in points]
        axis.plot(x, y, color=colour, linewidth=2, label=label)
    wanted = rows[0].wanted
    axis.axhline(wanted, color=plot.BLACK, linewidth=1, linestyle="--", label=f"{wanted:.1%}")
    axis.set_xscale("log")
    plot.in_seconds(axis.xaxis)
    plot.in_percent(axis.yaxis)
    axis.set_ylim(max(0.0, wanted - 0.25), 1.0)
    axis.set(xlabel="seconds of training", ylabel="test accuracy")
    axis.legend(**plot.SMALL, loc="lower right")


def _draw_memory(axis: Any, rows: Sequence[Any]) -> None:
    """Traced bytes in planes beside the limit."""
    rows = [row for row in rows if row.ours]
    traced = [(row.traced or 0) / row.plane for row in rows]
    axis.barh(range(len(rows)), traced, color=plot.BLUE, height=0.66)
    limits = [row.limit / row.plane if row.limit else None for row in rows]
    plot.rows(axis, [row.method for row in rows], ("the limit", "|", plot.BLACK, limits))
    axis.legend(**plot.ABOVE, ncols=3)
    axis.set_xlabel("planes of d / 8 bytes, beyond parameters, gradients and stated state")


SHOWN = Shown(_tables, _notes, _draw)
