"""What came out: a table for people, JSON for programs."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mpisign
from mpisign.training.errors import SettingsError, missing
from mpisign.training.loop import Result
from mpisign.training.progress import on_terminal
from mpisign.training.settings import Settings
from mpisign.training.suspects import Suspect
from mpisign.training.world import World

if TYPE_CHECKING:
    from rich.table import Table

_WIDTH = 120  # columns where no terminal tells its own
_SUSPECTS = """\
Differs: from its group's vote. Flagged: far from it, and nobody else of the group was. Odd one out:
the same over a draw's second half. A suspect was that in over half of its draws, of which those
count less that it shared with other suspects. What can be trusted of it: docs/detox.md."""
_FIXED = """\
These groups were drawn once: in one with a hostile majority the honest are the odd ones out."""


def baseline(result: Result, results: Sequence[Result]) -> Result | None:
    """The fp32 run over the same transport, which ``result`` is measured against."""
    for other in results:
        if other.via == result.via and not other.votes:
            return other
    return None


def fewer(result: Result, results: Sequence[Result]) -> float | None:
    """How many times fewer bytes than its baseline this rank sent and received."""
    base = baseline(result, results)
    if base is None or not result.votes or result.sent + result.received == 0:
        return None
    return (base.sent + base.received) / (result.sent + result.received)


def print_table(results: Sequence[Result], settings: Settings, world: World, data: str) -> None:
    """Prints the table, a row a way, and what the columns do not say."""
    from rich.console import Console

    watched = on_terminal()
    console = Console(width=None if watched else _WIDTH, force_terminal=watched, highlight=False)
    wired = any(r.wire is not None for r in results)
    heads = ["test\naccuracy", "sent\nB/step", "received\nB/step", "times\nfewer"]
    opened = any(r.backdoor is not None for r in results)
    if opened:
        heads.insert(1, "back\ndoor")
    table = _table([*heads, *(["on wire\nB/step"] if wired else []), "time\nms/step"])
    table.title = title(results, settings, world, data)
    table.caption = _caption(results, wired)
    for r in results:
        times = fewer(r, results)
        cells = [f"{r.accuracy:.1%}"]
        if opened:
            cells.append("-" if r.backdoor is None else f"{r.backdoor:.1%}")
        cells += [f"{r.sent:,.0f}", f"{r.received:,.0f}"]
        cells.append("-" if times is None else f"{times:.1f}")
        if wired:
            cells.append("-" if r.wire is None else f"{r.wire:,.0f}")
        table.add_row(r.label, *cells, f"{1e3 * r.seconds:.2f}", style="bold" if r.votes else None)
    console.print()
    console.print(table)
    if any(r.stages["vote"] for r in results):
        stages = _table([f"{name}\nms/step" for name in results[0].stages])
        for r in results:
            stages.add_row(r.label, *(_milliseconds(s) for s in r.stages.values()))
        console.print(stages)
    for r in results:
        if r.suspects is not None and _told(r.suspects, settings):
            console.print(_suspects(r, r.suspects, settings, world))
            console.print(_SUSPECTS if r.suspects[0].draws > 1 else f"{_SUSPECTS}\n{_FIXED}")


def _told(found: Sequence[Suspect], settings: Settings) -> bool:
    if settings.suspects is not None:
        return settings.suspects
    return any(s.verdict != "inconspicuous" for s in found)


def _suspects(result: Result, found: Sequence[Suspect], settings: Settings, world: World) -> Table:
    truth = ["in truth"] if settings.adversaries else []
    heads = ["differs\nof votes", "flagged\nof tallies", "odd one out\nof draws", "verdict"]
    table = _table([*heads, *truth], "rank")
    named = [str(s.rank) for s in found if s.verdict == "suspect"]
    table.title = f"suspects, {result.label}: {', '.join(named) or 'none'}"
    for s in found:
        style = {"suspect": "bold red", "unclear": "yellow"}.get(s.verdict)
        times = f"{s.odd} of {s.draws}"
        cells = [str(s.rank), f"{s.share:.1%}", f"{s.flagged:.1%}", times, s.verdict]
        if truth:
            cells.append("hostile" if s.rank in settings.hostile(world.size) else "honest")
        table.add_row(*cells, style=style)
    return table


def _table(heads: Sequence[str], first: str = "way") -> Table:
    from rich import box
    from rich.table import Table

    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        title_justify="left",
        title_style="bold",
        caption_justify="left",
    )
    table.add_column(first, no_wrap=True)
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    return table


def _milliseconds(seconds: float) -> str:
    return "-" if seconds == 0 else f"{1e3 * seconds:.2f}"


def title(results: Sequence[Result], settings: Settings, world: World, data: str) -> str:
    """What was trained, on what, against whom: one line."""
    ranks = "1 rank" if world.size == 1 else f"{world.size} ranks"
    if settings.detox is not None:
        ranks += _groups_of(settings, world)
    if settings.adversaries:
        ranks += f", the last {settings.adversaries} hostile ({settings.attack})"
    first = results[0]
    return f"{data} on {ranks}: {first.steps} steps, {first.parameters:,} parameters"


def _groups_of(settings: Settings, world: World) -> str:
    assert settings.detox is not None
    how = {"spread": "", "packed": ", packed", "worst": ", placed at worst"}[settings.placement]
    if settings.placement == "spread" and settings.reshuffle_every:
        every = settings.reshuffle_every
        how = " drawn every " + ("epoch" if every == 1 else f"{every} epochs")
    groups = world.size // settings.detox
    return f" in {groups} {'group' if groups == 1 else 'groups'}{how}"


def _caption(results: Sequence[Result], wired: bool) -> str:
    apart = [r.label for r in results if not r.identical]
    if apart:
        lines = [f"PARAMETERS DIFFER BETWEEN RANKS: {', '.join(apart)}."]
    else:
        lines = ["Final parameters are equal on all ranks, bit for bit, in every row."]
    lines.append("Bytes are one rank's; times fewer: than fp32 over the same transport.")
    if wired:
        lines.append("On wire: TCP over loopback, headers included, as the kernel counts it.")
    return "\n".join(lines)


def check() -> None:
    """Raises SettingsError if rich is missing."""
    try:
        import rich  # noqa: F401
    except ImportError as error:
        raise missing("rich", error) from error


def check_path(option: str, path: Path | None) -> None:
    """Raises SettingsError if no file can be written at ``path``."""
    if path is None:
        return
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise SettingsError(f"{option} {path}: not a file in an existing directory")
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise SettingsError(f"{option} {path}: cannot be written")


def write_json(
    path: Path, results: Sequence[Result], settings: Settings, world: World, data: str
) -> None:
    """Writes everything that was measured, and on what."""
    document: dict[str, Any] = {
        "mpisign": mpisign.__version__,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "ranks": world.size,
        "one_machine": world.one_machine,
        "data": data,
        "settings": settings.as_dict(),
        "versions": {
            "python": platform.python_version(),
            "library": world.library,
            **{name: _version(name) for name in ("torch", "numpy", "mpi4py", "horovod")},
        },
        "host": {
            "name": platform.node(),
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "system": platform.platform(),
        },
        "ways": [{**r.as_dict(), "fewer_than_fp32": fewer(r, results)} for r in results],
    }
    path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
