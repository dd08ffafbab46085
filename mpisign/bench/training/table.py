"""What was measured, for people: tables of text and of Markdown, and what their columns mean."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean

from mpisign.bench.results import Timing
from mpisign.bench.table import Table, amount, of_markdown, seconds
from mpisign.bench.training.record import Record
from mpisign.bench.training.results import AccuracyRow, MemoryRow, Row, StepRow
from mpisign.bench.wire.record import on

_STEP = ("way", "step", "+-", "x none", "+-", "x fp16", "on link", "sent", "cpu", "replicas")
_ACCURACY = (
    "way", "lr", "steps to", "seconds to", "x fp16", "final", "+-", "step", "on link", "replicas"
)  # fmt: skip
_MEMORY = ("way", "state", "traced", "planes", "limit", "resident", "planes", "replicas")
_RUNS = 3  # from which a spread is told


def tables(record: Record) -> Iterator[Table]:
    """The rows that have figures, and the goals."""
    heads = {"step": _STEP, "memory": _MEMORY}.get(record.settings.mode, _ACCURACY)
    rows = [_cells(row) for row in record.rows if not row.error]
    if rows:
        yield Table(_title(record), heads, list(rows)).filled()
    if record.goals:
        cells: list[Sequence[str]] = [
            (g.what, g.wanted, f"{g.got:#.3g}", "met" if g.met else "missed") for g in record.goals
        ]
        yield Table("goals", ("what", "wanted", "got", ""), cells)


def _title(record: Record) -> str:
    s = record.settings
    model = f"{record.parameters:,} parameters in {s.layers} hidden layers"
    batch = f"batches of {s.batch_size} a rank"
    if s.mode == "step":
        return f"{model}, {batch}: seconds per step"
    if s.mode == "memory":
        return f"{model}: memory of a step beyond parameters, gradients and stated state"
    what = "learning rates" if s.mode == "tune" else "time"
    return f"{model}, {batch}: {what} to {s.accuracy:.1%} in {s.steps} steps"


def _cells(row: Row) -> tuple[str, ...]:
    if isinstance(row, StepRow):
        return _step(row)
    if isinstance(row, AccuracyRow):
        return _accuracy(row)
    assert isinstance(row, MemoryRow)
    return _memory(row)


def _step(row: StepRow) -> tuple[str, ...]:
    assert row.time is not None
    return (
        row.way,
        seconds(row.time.median),
        _spread(row.time),
        "" if row.ratio is None else f"{row.ratio.median:.3f}",
        "" if row.ratio is None else _spread(row.ratio),
        "" if row.faster is None else f"{row.faster.median:#.3g}",
        _bytes(row.counted),
        _bytes(row.blocks[0].sent) if row.ours else "",
        seconds(row.cpu),
        _replicas(row),
    )


def _accuracy(row: AccuracyRow) -> tuple[str, ...]:
    counted = [r.counted for r in row.runs if r.counted is not None]
    reached = sum(r.first(row.wanted) is not None for r in row.runs)
    missed = f"{reached} of {len(row.runs)}"
    return (
        row.way,
        f"{row.lr:g}",
        missed if row.steps is None else f"{row.steps:.0f}",
        "" if row.seconds is None else f"{row.seconds:#.3g} s",
        "" if row.less is None else f"{row.less:#.3g}",
        f"{fmean(row.final):.2%}",
        "" if len(row.runs) < 2 else f"{(max(row.final) - min(row.final)) / 2:.2%}",
        seconds(row.seconds_per_step),
        _bytes(fmean(counted)) if counted else "",
        _replicas(row),
    )


def _memory(row: MemoryRow) -> tuple[str, ...]:
    assert row.traced is not None and row.state is not None
    return (
        row.way,
        _bytes(row.state),
        _bytes(row.traced) if row.ours else "",
        _planes(row.traced, row) if row.ours else "",
        "" if row.limit is None else _planes(row.limit, row),
        _bytes(row.resident),
        "" if row.resident is None else _planes(row.resident, row),
        _replicas(row),
    )


def _planes(nbytes: float, row: MemoryRow) -> str:
    return f"{nbytes / row.plane:.2f}"


def _bytes(value: float | None) -> str:
    if value is None:
        return ""
    return f"-{amount(round(-value))}" if value < 0 else amount(round(value))


def _spread(timing: Timing) -> str:
    return "" if timing.runs < _RUNS else f"{timing.spread:.1%}"


def _replicas(row: Row) -> str:
    return "" if row.identical is None else "equal" if row.identical else "DIFFER"


def footnotes(record: Record) -> list[str]:
    """What to know beside the tables, one paragraph each."""
    told = [f"Ranks: {on(record.nodes)}.", _COLUMNS[record.settings.mode]]
    names = [row.way for row in record.rows]
    if "ddp-powersgd" in names:
        told.append(
            "ddp-powersgd: rank 1, from the third step on, error feedback, warm start; in one "
            "bucket, as in several torch's hook hangs on Gloo."
        )
    if record.settings.mode == "memory" and any(name.startswith("ddp") for name in names):
        told.append("DDP keeps every gradient twice, in its buckets too: 32 planes of resident.")
    apart = [row.way for row in record.rows if row.identical is False]
    if apart:
        told.append(f"ERROR: REPLICAS DIFFER after {', '.join(apart)}: its figures mean nothing.")
    told += [f"{row.way} not run: {row.error}" for row in record.rows if row.error]
    return told + record.notes


_STEP_COLUMNS = (
    "step: forward, backward, exchange and update, of the slowest rank, median of the rounds; +- "
    "half the quartiles' distance; x none: to the same step without any communication in the same "
    "round; x fp16: how many times faster than Horovod's with fp16; on link: counted at each "
    "node's interface, each way; sent: as mpisign.stats() books a rank's; cpu: processor time of a "
    "rank, all threads; replicas: whether all ranks' parameters are equal, bit for bit."
)
_ACCURACY_COLUMNS = (
    "steps to, seconds to: until the accuracy on the test digits is reached, mean over the seeds "
    "(n of m: it is not, with some), evaluation not counted; x fp16: how many times less time than "
    "Horovod's fp16; final: at the end of the schedule (half a cosine), mean; +- half the distance "
    "between the best and the worst seed; step: mean; on link: a step's bytes at each node's "
    "interface, each way; replicas: whether all ranks' parameters are equal, bit for bit."
)
_COLUMNS = {
    "step": _STEP_COLUMNS,
    "accuracy": _ACCURACY_COLUMNS,
    "tune": _ACCURACY_COLUMNS + " The first row of each way has the fewest steps among those whose "
    "final accuracy is within 0.5 points of its best.",
    "memory": "Of the rank that needs most, peak during a step beyond the same of the step without "
    "communication. state: what a checkpoint holds of momenta and residuals, torch's included; "
    "traced: by Python's tracemalloc, all of NumPy's memory; resident: by the kernel, all "
    "libraries' memory, state left out; planes: in planes of d / 8 bytes; limit: one plane and the "
    "largest bucket's gradients, of those that travel in buckets.",
}


def markdown(record: Record) -> str:
    """As docs/measurements.md has it."""
    parts = [f"    {record.command}", *(of_markdown(t) for t in tables(record))]
    return "\n\n".join([*parts, *footnotes(record)]) + "\n"
