"""What ``mpisign bench kernels`` measures: kernels, limits, plain expressions in turns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

from mpisign import _kernels
from mpisign.bench import report
from mpisign.bench.kernels import shown
from mpisign.bench.kernels.case import Case
from mpisign.bench.kernels.cases import cases, small_cases
from mpisign.bench.kernels.cuda import Cuda
from mpisign.bench.kernels.host import Host
from mpisign.bench.kernels.stock import torch_there
from mpisign.bench.measure import Contender, Ring, Timing, rounds
from mpisign.bench.progress import progress
from mpisign.bench.record import Record
from mpisign.bench.settings import KernelsSettings
from mpisign.bench.table import amount, coordinates
from mpisign.experiments.errors import SettingsError

SMALL_CALL = 1000  # coordinates
_PLAIN_BUDGET = 0.3  # seconds for each plain expression
_SCALES_FROM = 1 << 17  # coordinates: below, kernels keep to one thread
_SCALING, _REACHABLE = 1.6, 0.9  # goal of two threads over one; share of the limit it supposes


@dataclass(frozen=True)
class Plain:
    """A plain expression, and how many times longer it takes."""

    name: str
    time: Timing
    times_slower: float


@dataclass(frozen=True)
class KernelRow:
    """One kernel at one size with one number of threads. ``error``: why there is nothing else."""

    kernel: str
    variant: str
    n: int | None
    size: int
    threads: int
    limit: str
    moved: int
    goal: float | None
    time: Timing | None = None
    bytes_per_second: float | None = None
    limit_how: str | None = None
    limit_time: Timing | None = None
    limit_bytes_per_second: float | None = None
    ratio: float | None = None
    met: bool | None = None
    scaling: float | None = None
    limit_scaling: float | None = None
    scaling_met: bool | None = None
    plain: list[Plain] = field(default_factory=list)
    error: str | None = None


@dataclass(frozen=True)
class SmallCall:
    """A call on few coordinates, from Python, with all that is new in the caches."""

    name: str
    size: int
    time: Timing
    goal: float | None
    met: bool | None
    plain: list[Plain]


@dataclass(kw_only=True)
class KernelsRecord(Record):
    """One run of ``mpisign bench kernels``."""

    device: dict[str, Any]
    calls: list[SmallCall] = field(default_factory=list)

    @property
    def where(self) -> str:
        """The machine, and the GPU if one was measured."""
        d = self.device
        return f"On {d['gpu']}, CUDA {d['cuda']}." if "gpu" in d else ""


def run(settings: KernelsSettings, command: str) -> int:
    """Measures and reports; the exit status. Raises SettingsError."""
    record = KernelsRecord(name=settings.NAME, command=command, settings=settings, device={})
    report.check(record, shown.SHOWN)
    device: Any = (Host if settings.device == "cpu" else Cuda)(settings.warm)
    plan = list(_plan(settings, device))
    if not plan and settings.only and "calls" not in settings.only:
        raise SettingsError(f"--only {','.join(settings.only)}: not on --device {settings.device}")
    if settings.plot is not None:
        _check_ratios(plan, device)
    if settings.isa is not None:
        if settings.isa not in _kernels.isas():
            has = ", ".join(_kernels.isas())
            raise SettingsError(f"--isa {settings.isa}: this processor has {has}")
        _kernels.use_isa(settings.isa)
    record.device = {"kind": device.name, **device.describe()}
    if device.name == "cpu":
        record.device["isa"] = _kernels.isa()
    record.notes.append(_where(settings, device))
    if not torch_there():
        record.notes.append("torch is not installed: bfloat16 and torch's rows are left out.")
    return report.run(record, shown.SHOWN, lambda: _measure(settings, plan, device, record))


def _plan(settings: KernelsSettings, device: Any) -> Iterator[tuple[Case, int]]:
    """Every case at the largest size, the main ones at the others."""
    for size in settings.sizes:
        for case in cases(device.xp):
            wanted = not settings.only or case.kernel in settings.only
            there = torch_there() or not case.needs_torch
            if wanted and there and (case.main or settings.all or size == max(settings.sizes)):
                yield case, size


def _check_ratios(plan: list[tuple[Case, int]], device: Any) -> None:
    """Raises SettingsError if nothing of ``plan`` can be drawn."""
    if not plan:
        raise SettingsError(
            "--plot: calls have no limit to be drawn against: add a kernel to --only"
        )
    if all(size < device.small for _, size in plan):
        raise SettingsError(
            f"--plot: sizes below {device.small:,} have no limit to be drawn against: add one, "
            "such as --sizes 1k,1M"
        )


def _where(settings: KernelsSettings, device: Any) -> str:
    if device.name != "cpu":
        return "Times by CUDA events."
    if settings.warm:
        return "Memory: the same bytes again and again, cached where they fit (--warm)."
    return (
        f"Memory: calls alternate between sets of arguments of {amount(device.fresh)} together or "
        f"more, so that data comes from memory; below {device.small:,} coordinates from caches."
    )


def _measure(
    settings: KernelsSettings, plan: list[tuple[Case, int]], device: Any, record: KernelsRecord
) -> None:
    if torch_there():
        import torch  # noqa: F401 (now: seconds, which belong to no kernel)
    calls = "calls" in settings.only or not settings.only
    with progress(len(plan) + calls) as begin:
        for case, size in plan:
            n = "" if case.n is None else f", {case.n} rows"
            begin(f"{case.kernel} ({case.variant}{n}), {coordinates(size)} coordinates")
            record.rows += measure(case, size, settings.threads, settings.runs, device)
        if calls:
            begin("small calls")
            record.calls += small_calls(SMALL_CALL, settings.runs, device)


def measure(
    case: Case, size: int, threads: Sequence[int], runs: int, device: Any
) -> list[KernelRow]:
    """A row for each number of ``threads``, all measured in the same rounds."""
    needed = case.held(size)
    copies = device.copies(needed, size)
    room = copies * (needed + (16 << 10))
    if room + needed > device.available():
        error = f"needs {room / 1e9:.1f} GB of memory"
        return [_row(case, size, t, device, error=error) for t in threads]
    stock = device.stock(room)
    sets = [case.build(stock, size) for _ in range(copies)]
    ring, clock = Ring(copies), device.time
    ours = {t: Contender([s.ours for s in sets], ring, clock=clock, threads=t) for t in threads}
    first: Any = {"clock": clock, "threads": threads[0]}
    plain = {
        name: Contender([s.plain[name] for s in sets], ring, budget=_PLAIN_BUDGET, **first)
        for name in sets[0].plain
    }
    moved, limit = case.moved(size), device.limit(case)
    limits: dict[tuple[str, int], Contender] = {}
    for t in threads if size >= device.small else ():
        for how, calls in device.limit_calls(limit, moved, t).items():
            limit_ring = next(iter(limits.values())).ring if limits else None
            limits[how, t] = Contender(calls, limit_ring, clock=clock, threads=t)
    rounds([*limits.values(), *ours.values(), *plain.values()], runs, device)
    rows: list[KernelRow] = []
    for t in threads:
        own = ours[t].timing
        row = _row(case, size, t, device, time=own, plain=_beside(plain, own) if not rows else [])
        found = {how: c for (how, n), c in limits.items() if n == t}
        if found:
            how = min(found, key=lambda how: found[how].timing.median)
            time, nbytes = found[how].timing, device.limit_bytes(limit, moved)
            # Round by round: a machine that slows down for a while does so for both.
            pairs = zip(found[how].samples, ours[t].samples, strict=True)
            ratio = float(median(of_limit / of_ours for of_limit, of_ours in pairs))
            ratio *= moved / nbytes
            row = replace(
                row,
                limit_how=how,
                limit_time=time,
                limit_bytes_per_second=nbytes / time.median,
                ratio=ratio,
                met=None if row.goal is None else ratio >= row.goal,
            )
        rows.append(_scaled(row, rows[0]) if rows else row)
    return rows


def _beside(plain: dict[str, Contender], own: Timing) -> list[Plain]:
    return [Plain(name, c.timing, c.timing.median / own.median) for name, c in plain.items()]


def _row(case: Case, size: int, threads: int, device: Any, **known: Any) -> KernelRow:
    goal, limit, moved = device.goal(case, size, threads), device.limit(case), case.moved(size)
    if known.get("time"):
        known["bytes_per_second"] = moved / known["time"].median
    return KernelRow(case.kernel, case.variant, case.n, size, threads, limit, moved, goal, **known)


def _scaled(row: KernelRow, first: KernelRow) -> KernelRow:
    """``row`` with how many times faster it is than ``first``, and how many times memory is."""
    if row.size < _SCALES_FROM or not row.bytes_per_second or not first.bytes_per_second:
        return row
    row = replace(row, scaling=row.bytes_per_second / first.bytes_per_second)
    memory, memory_of_one = row.limit_bytes_per_second, first.limit_bytes_per_second
    if not memory or not memory_of_one:
        return row
    row = replace(row, limit_scaling=memory / memory_of_one)
    reachable = _REACHABLE * memory / first.bytes_per_second
    if first.met is None or row.threads != 2 or reachable < _SCALING:
        return row
    return replace(row, scaling_met=(row.scaling or 0.0) >= _SCALING)


def small_calls(size: int, runs: int, device: Any) -> Iterator[SmallCall]:
    """What a call costs from Python."""
    stock = device.stock(64 * size + (1 << 16))
    for name, goal, calls in small_cases(device.xp, stock, size, *device.call_goals):
        ours = Contender([calls.ours], clock=device.call_time)
        plain = {k: Contender([c], clock=device.call_time) for k, c in calls.plain.items()}
        rounds([ours, *plain.values()], runs, device)
        own = ours.timing
        met = None if goal is None else own.median < goal
        yield SmallCall(name, size, own, goal, met, _beside(plain, own))
