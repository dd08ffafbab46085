"""``mpisign bench kernels`` from its settings to its table, JSON and plot."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mpisign import _kernels
from mpisign.bench import coding, files, packing, table, voting
from mpisign.bench.case import Case
from mpisign.bench.errors import BenchError
from mpisign.bench.measure import measure, small_calls
from mpisign.bench.progress import Progress
from mpisign.bench.record import Record
from mpisign.bench.stock import torch_there

SMALL_CALL = 1000  # coordinates
_MARK = "<!-- mpisign bench kernels -->"


@dataclass(frozen=True)
class Settings:
    """What to measure, how, and where the results go."""

    sizes: tuple[int, ...]
    only: tuple[str, ...]
    device: str
    threads: tuple[int, ...]
    runs: int
    warm: bool
    all: bool
    isa: str | None
    json: Path | None
    plot: Path | None
    markdown: Path | None


def run(settings: Settings, command: str) -> int:
    """Measures and reports; the exit status. Raises BenchError for what a person can put right."""
    for option in ("json", "plot", "markdown"):
        files.check_path(f"--{option}", getattr(settings, option))
    if settings.plot is not None:
        from mpisign.bench import plot

        plot.check(settings.plot)
    if settings.markdown is not None:
        files.around(settings.markdown, _MARK)
    device = _device(settings)
    plan = list(_plan(settings, device))
    if not plan and settings.only and "calls" not in settings.only:
        raise BenchError(f"--only {','.join(settings.only)}: not on --device {settings.device}")
    if settings.plot is not None:
        _check_ratios(plan, device)
    if settings.isa is not None:
        if settings.isa not in _kernels.isas():
            raise BenchError(
                f"--isa {settings.isa}: this processor has {', '.join(_kernels.isas())}"
            )
        _kernels.use_isa(settings.isa)
    kept = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(settings).items()}
    record = Record(command, {"kind": device.name, **device.describe()}, kept)
    if device.name == "cpu":
        record.device["isa"] = _kernels.isa()
    record.notes.append(_where(settings, device))
    try:
        if torch_there():
            import torch  # noqa: F401 (now: seconds, which belong to no kernel)
        else:
            record.notes.append("torch is not installed: bfloat16 and torch's ways are left out.")
        _measure(settings, plan, device, record)
    except KeyboardInterrupt:
        record.notes.append("Interrupted: not all was measured.")
        _print(record)
        if settings.json is not None:
            files.write("--json", settings.json, record.write)
        print(f"\nmpisign: interrupted after {len(record.rows)} rows", file=sys.stderr)
        return 130
    _print(record)
    tables = table.markdown(record)
    files.write_all(
        [
            ("--json", settings.json, record.write),
            (
                "--markdown",
                settings.markdown,
                lambda p: files.write_between_marks(p, _MARK, tables),
            ),
            ("--plot", settings.plot, lambda p: plot.write(p, record)),
        ]
    )
    return 0


def _device(settings: Settings) -> Any:
    if settings.device == "cpu":
        from mpisign.bench.host import Host

        return Host(settings.warm)
    from mpisign.bench.cuda import Cuda

    return Cuda(settings.warm)


def _measure(settings: Settings, plan: list[tuple[Case, int]], device: Any, record: Record) -> None:
    calls = "calls" in settings.only or not settings.only
    with Progress(len(plan) + calls) as progress:
        for case, size in plan:
            n = "" if case.n is None else f", {case.n} rows"
            size_text = table.coordinates(size)
            progress.begin(f"{case.kernel} ({case.variant}{n}), {size_text} coordinates")
            record.rows += measure(case, size, settings.threads, settings.runs, device)
            progress.end()
        if calls:
            progress.begin("small calls")
            record.calls += small_calls(SMALL_CALL, settings.runs, device)
            progress.end()


def _plan(settings: Settings, device: Any) -> Iterator[tuple[Case, int]]:
    """Every case at the largest size, the main ones at the others."""
    cases = [case for part in (packing, voting, coding) for case in part.cases(device.xp)]
    cases = [c for c in cases if not settings.only or c.kernel in settings.only]
    cases = [c for c in cases if torch_there() or not c.needs_torch]
    for size in settings.sizes:
        for case in cases:
            if case.main or settings.all or size == max(settings.sizes):
                yield case, size


def _where(settings: Settings, device: Any) -> str:
    if device.name != "cpu":
        return "Times by CUDA events."
    where = "the same bytes again and again, cached where they fit (--warm)"
    if not settings.warm:
        where = (
            f"calls take turns in sets of arguments of {table.amount(device.fresh)} together or "
            f"more, so that data comes from memory; below {device.small:,} coordinates from caches"
        )
    return f"Memory: {where}."


def _print(record: Record) -> None:
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    print(record.machine)
    for part in table.tables(record):
        print(f"\n{table.text(part, colour)}")
    print()
    for line in filter(None, table.footnotes(record)):
        print(textwrap.fill(line, 100))
    if record.verdicts:
        print(f"{sum(record.verdicts)} of {len(record.verdicts)} goals met.")
    sys.stdout.flush()


def _check_ratios(plan: list[tuple[Case, int]], device: Any) -> None:
    """Raises BenchError if nothing of ``plan`` can be drawn."""
    if not plan:
        raise BenchError("--plot: calls have no limit to be drawn against: add a kernel to --only")
    if all(size < device.small for _, size in plan):
        raise BenchError(
            f"--plot: sizes below {device.small:,} have no limit to be drawn against: add one, "
            "such as --sizes 1k,1M"
        )
