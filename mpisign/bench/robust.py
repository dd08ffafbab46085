"""``mpisign bench robust``: robust rules beside ByzFL's and the limit of memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np

from mpisign import robust
from mpisign.backend import arrays
from mpisign.bench import report
from mpisign.bench.kernels.host import Host
from mpisign.bench.kernels.stock import torch_there
from mpisign.bench.measure import Contender, Ring, Timing, busy, rounds
from mpisign.bench.peers import byzfl
from mpisign.bench.progress import progress
from mpisign.bench.record import Record
from mpisign.bench.report import Shown
from mpisign.bench.settings import RobustSettings
from mpisign.bench.table import Table, coordinates, goals_met, seconds, spread, times, verdict
from mpisign.experiments.errors import SettingsError

TIMES = 2.0  # as fast as ByzFL, at least
AT_LIMIT = 0.7  # of the speed of plain reading, from which memory takes the time, not the rule
_FROM_MEMORY = 1 << 20  # bytes of rows: less is measured in the caches
_PEER_SECONDS = 4.0  # after which ByzFL's rule takes no more turns
_WRITES = ("clipping",)  # ByzFL's overwrites its argument
_DRAWS = ("bucketing",)  # at random
_HEADS = (
    "rule", "time", "+-", "of limit", "ByzFL", "+-", "times", "goal", "", "differs by", "note"
)  # fmt: skip


@dataclass(frozen=True)
class RuleRow:
    """Seconds of one call. ``limit``: of reading all rows once by plain loads, in turns with it.

    ``differs``: the largest difference of the two results, by the largest magnitude of ByzFL's;
    None if it has no such rule, or draws at random in another way. ``note``: why it is missing.
    """

    DERIVED: ClassVar = ("times", "of_limit", "met")

    rule: str
    framework: str
    time: Timing
    limit: Timing
    theirs: Timing | None = None
    differs: float | None = None
    note: str = ""

    @property
    def times(self) -> float | None:
        """How many times longer ByzFL takes."""
        return self.theirs.median / self.time.median if self.theirs else None

    @property
    def of_limit(self) -> float:
        """Its speed, by that of reading the rows."""
        return self.limit.median / self.time.median

    @property
    def met(self) -> bool | None:
        """At least twice as fast as ByzFL, or at the memory's limit; None without ByzFL's rule."""
        if self.of_limit >= AT_LIMIT:
            return True
        return None if self.times is None else self.times >= TIMES


@dataclass(kw_only=True)
class RobustRecord(Record):
    """One run of ``mpisign bench robust``. ``byzfl``: whether ByzFL's rules were measured."""

    byzfl: bool = False


def run(settings: RobustSettings, command: str) -> int:
    """Measures and reports; the exit status. Raises SettingsError."""
    record = RobustRecord(name=settings.NAME, command=command, settings=settings)
    report.check(record, SHOWN)
    _check(settings)
    module = byzfl.aggregators()
    record.byzfl = module is not None
    return report.run(record, SHOWN, lambda: _measure(record, module))


def _check(s: RobustSettings) -> None:
    """Raises SettingsError for what cannot be measured here."""
    if "torch" in s.frameworks and not torch_there():
        raise SettingsError("--framework torch: torch is not installed")
    needed = 3 * s.rows * s.size * np.dtype(s.dtype).itemsize
    if needed > Host(warm=False).available():
        raise SettingsError(f"--rows, --size: needs {needed / 1e9:.1f} GB of memory")
    for name in s.rules:
        try:
            if name not in robust.MIXINGS:
                robust.by_name(name, s.f).check(s.rows)
        except ValueError as error:
            raise SettingsError(f"--rules {name}: {error}") from error


def _measure(record: RobustRecord, module: Any) -> None:
    s: RobustSettings = record.settings
    nbytes = s.rows * s.size * np.dtype(s.dtype).itemsize
    host = Host(warm=nbytes < _FROM_MEMORY)
    rng = np.random.default_rng(0)
    rows = [
        rng.standard_normal((s.rows, s.size), dtype=np.dtype(s.dtype).type)
        for _ in range(host.copies(nbytes, max(s.size, host.small)))
    ]
    with progress(len(s.rules) * len(s.frameworks)) as begin:
        for framework in s.frameworks:
            for name in s.rules:
                begin(f"{name}, {framework}")
                record.rows.append(_row(name, framework, s, rows, host, module))


def _row(
    name: str, framework: str, s: RobustSettings, rows: Sequence[np.ndarray[Any, Any]], host: Host,
    module: Any,
) -> RuleRow:  # fmt: skip
    """One rule on ``rows``, sets of rows that calls alternate between, as arrays of a framework."""
    rule = robust.by_name(name, s.f) if name not in robust.MIXINGS else _mixing(name, s.f)
    theirs = byzfl.rule(module, name, s.f) if module else None
    given = [_of(framework, x) for x in rows]
    read = next(iter(host.limit_calls("read", rows[0].nbytes, s.threads).values()))
    ring, differs = Ring(len(rows)), None
    each: dict[str, Any] = {"threads": s.threads, "repeat": 1}
    limit = Contender(read, **each)
    ours = Contender([partial(rule, x) for x in given], ring, **each)
    contenders = [limit, ours]
    if theirs:
        with host.threads(s.threads):
            differs = _difference(rule, name, s.f, framework, rows[0], module)
        each["budget"] = _PEER_SECONDS
        if any(part in _WRITES for part in name.split("+")):
            copies = [_of(framework, x.copy()) for x in rows]

            def restore(at: int) -> None:
                copies[at][...] = given[at]
                read[at % len(read)]()  # other bytes lie in the caches, as for the others

            peer = Contender([partial(theirs, x) for x in copies], prepare=restore, **each)
        else:
            peer = Contender([partial(theirs, x) for x in given], ring, **each)
        contenders.append(peer)
    rounds(contenders, s.runs, host)
    note = "" if theirs or not module else "not in ByzFL"
    timing = peer.timing if theirs else None
    return RuleRow(name, framework, ours.timing, limit.timing, timing, differs, note)


def _mixing(name: str, f: int) -> Any:
    kind: Any = robust.MIXINGS[name]
    return kind(2) if kind is robust.Bucketing else kind(f) if kind.has_f else kind()


def _of(framework: str, x: np.ndarray[Any, Any]) -> Any:
    if framework == "numpy":
        return x
    import torch

    return torch.from_numpy(x)


def _difference(
    rule: Any, name: str, f: int, framework: str, x: np.ndarray[Any, Any], module: Any
) -> float | None:
    """Of a new rule of ByzFL's, on a copy, drawing as ours does; None where it cannot."""
    fresh = byzfl.rule(module, name, f)
    assert fresh is not None
    if any(part in _DRAWS for part in name.split("+")):
        if framework != "numpy":
            return None
        np.random.seed(0)
        ours = rule(x, rng=np.random.RandomState(0))
    else:
        ours = rule(_of(framework, x))
    theirs = np.asarray(arrays.host(fresh(_of(framework, x.copy()))), np.float64)
    apart = np.abs(np.asarray(arrays.host(ours), np.float64) - theirs)
    return float(apart.max() / max(np.abs(theirs).max(), np.finfo(np.float64).tiny))


def _tables(record: RobustRecord) -> Iterator[Table]:
    """One for each framework."""
    s = record.settings
    for framework in s.frameworks:
        rows = [row for row in record.rows if row.framework == framework]
        threads = f"{s.threads} thread{'s' if s.threads > 1 else ''}"
        title = (
            f"{framework}, {s.rows} rows of {coordinates(s.size)} {s.dtype}, f = {s.f}, {threads}"
        )
        if rows:
            yield Table(title, _HEADS, [_cells(row) for row in rows]).filled()


def _cells(row: RuleRow) -> list[str]:
    return [
        row.rule, seconds(row.time.median), spread(row.time), f"{row.of_limit:.2f}",
        seconds(row.theirs.median if row.theirs else None), spread(row.theirs), times(row.times),
        "" if row.met is None else f"{TIMES:g}x" if row.of_limit < AT_LIMIT else "limit",
        verdict(row.met), "" if row.differs is None else f"{row.differs:.0e}", row.note,
    ]  # fmt: skip


def _notes(record: RobustRecord) -> Iterator[str]:
    yield (
        f"time: median of {record.settings.runs} turns, +- half the quartiles' distance; of limit: "
        "what plain loads take to read the rows once, in turns with it, by the time; times: how "
        f"many times longer ByzFL takes; goal: {TIMES:g} times, or the memory's limit: "
        f"{AT_LIMIT:g} of the speed of plain loads; differs by: the largest difference of the "
        "results, by the largest magnitude (empty: drawn at random otherwise). Calls alternate "
        "between copies of the rows, which so come from memory (below 1 MiB from the caches)."
    )
    if not record.byzfl:
        yield f"ByzFL is not installed: {byzfl.HINT}."
    limits = [row.limit for row in record.rows]
    yield busy(limits, "Times mean little in this run, ratios somewhat more.")
    yield goals_met([row.met for row in record.rows])


SHOWN = Shown(_tables, _notes)
