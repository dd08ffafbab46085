"""The results of ``mpisign train``: a table, a Markdown page, JSON, a plot."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mpisign.experiments import files, plot
from mpisign.experiments.settings import Settings
from mpisign.experiments.suspects import Suspect
from mpisign.experiments.tables import TextTable, page, show
from mpisign.experiments.world import TrainingWorld

if TYPE_CHECKING:
    from mpisign.experiments.compare import Result

MARK = "<!-- mpisign train -->"
_WIDTH = 120  # columns where standard output is no terminal
_SUSPECTS = """\
Differs: from its group's vote. Flagged: far from it, and nobody else of the group was. Odd one out:
the same over a draw's second half. A suspect was that in over half of its draws, of which those
count less that it shared with other suspects. What can be trusted of it: docs/detox.md."""
_FIXED = """\
These groups were drawn once: in one with a hostile majority the honest are the odd ones out."""


@dataclass(frozen=True)
class Stopped:
    """Where a signal ended the run: after ``step`` of ``steps`` steps of a variant."""

    way: str
    label: str
    step: int
    steps: int
    number: int

    @property
    def signal(self) -> str:
        """The signal's name."""
        return signal.Signals(int(self.number)).name if self.number else "request_stop"

    @property
    def status(self) -> int:
        """The exit status, as a shell gives it."""
        return 128 + int(self.number) if self.number else 0

    def __str__(self) -> str:
        why = {"SIGINT": "interrupted", "SIGTERM": "ended by the launcher"}
        what = why.get(self.signal, self.signal)
        return f"{what}: stopped at step {self.step} of {self.steps} of {self.label}"


def write(
    results: Sequence[Result],
    settings: Settings,
    world: TrainingWorld,
    data: str,
    command: str,
    stopped: Stopped | None = None,
) -> None:
    """Prints the tables and writes the files that ``settings`` name."""
    if stopped is not None:
        print(f"\nmpisign: {stopped}; what there is so far:", file=sys.stderr, flush=True)
    heading = title(results, settings, world, data)
    if stopped is not None:
        heading += f" ({stopped})"
    parts = _tables(results, settings, world, heading)
    show(["", *parts], _WIDTH)
    if settings.json is not None:
        document = _document(results, settings, world, data, command)
        if stopped is not None:
            document["stopped"] = {
                **{k: v for k, v in asdict(stopped).items() if k != "number"},
                "signal": stopped.signal,
            }
        files.write(
            settings.json, json.dumps(document, indent=1, allow_nan=False, default=str) + "\n"
        )
    if settings.markdown is not None:
        files.write_between_marks(settings.markdown, MARK, page(command, parts))
    if settings.plot is not None:
        plot.write_curves(settings.plot, results, heading)
    for path in (settings.json, settings.markdown, settings.plot):
        if path is not None:
            print(f"wrote {path}", flush=True)


def fewer(result: Result, results: Sequence[Result]) -> float | None:
    """How many times fewer bytes ``result`` sent and received than fp32 on its transport."""
    base = next((r for r in results if r.via == result.via and not r.votes), None)
    if base is None or not result.votes or result.sent + result.received == 0:
        return None
    return (base.sent + base.received) / (result.sent + result.received)


def _tables(
    results: Sequence[Result], settings: Settings, world: TrainingWorld, heading: str
) -> list[TextTable | str]:
    """A row a variant, its stages, and who is suspected."""
    columns: list[tuple[str, str, list[Any]]] = [
        ("test\naccuracy", ".1%", [r.accuracy for r in results]),
        ("back\ndoor", ".1%", [r.backdoor for r in results]),
        ("sent\nB/step", ",.0f", [r.sent for r in results]),
        ("received\nB/step", ",.0f", [r.received for r in results]),
        ("times\nfewer", ".1f", [fewer(r, results) for r in results]),
        ("on wire\nB/step", ",.0f", [r.wire for r in results]),
        ("time\nms/step", ".2f", [1e3 * r.seconds for r in results]),
    ]
    optional = ("back\ndoor", "on wire\nB/step")
    columns = [c for c in columns if c[0] not in optional or any(v is not None for v in c[2])]
    parts: list[TextTable | str] = [_table(heading, results, columns, _caption(results))]
    if any(r.stages["vote"] for r in results):
        names = results[0].stages
        stages = [(f"{n}\nms/step", [1e3 * r.stages[n] or None for r in results]) for n in names]
        parts.append(_table("", results, [(head, ".2f", values) for head, values in stages]))
    for r in results:
        if r.suspects is not None and _conspicuous(r.suspects, settings):
            parts.append(_suspects(r, r.suspects, settings, world))
            parts.append(_SUSPECTS if r.suspects[0].draws > 1 else f"{_SUSPECTS}\n{_FIXED}")
    return parts


def _table(
    title: str,
    results: Sequence[Result],
    columns: Sequence[tuple[str, str, list[Any]]],
    caption: str = "",
) -> TextTable:
    """A row a variant, of columns with a head, a format and values."""
    table = TextTable(title, 1, ["method", *(head for head, _, _ in columns)], caption=caption)
    for i, r in enumerate(results):
        cells = ["-" if of[i] is None else format(of[i], form) for _, form, of in columns]
        table.add(r.label, *cells, style="bold" if caption and r.votes else None)
    return table


def _conspicuous(found: Sequence[Suspect], settings: Settings) -> bool:
    if settings.suspects is not None:
        return settings.suspects
    return any(s.verdict != "inconspicuous" for s in found)


def _suspects(
    result: Result, found: Sequence[Suspect], settings: Settings, world: TrainingWorld
) -> TextTable:
    named = [str(s.rank) for s in found if s.verdict == "suspect"]
    heads = ["rank", "differs\nof votes", "flagged\nof tallies", "odd one out\nof draws", "verdict"]
    if settings.adversaries:
        heads.append("in truth")
    table = TextTable(f"suspects, {result.label}: {', '.join(named) or 'none'}", 1, heads)
    for s in found:
        times = f"{s.odd} of {s.draws}"
        cells = [str(s.rank), f"{s.share:.1%}", f"{s.flagged:.1%}", times, s.verdict]
        if settings.adversaries:
            hostile = s.rank >= world.size - settings.adversaries
            cells.append("hostile" if hostile else "honest")
        table.add(*cells, style={"suspect": "bold red", "unclear": "yellow"}.get(s.verdict))
    return table


def title(results: Sequence[Result], settings: Settings, world: TrainingWorld, data: str) -> str:
    """What was trained, on what, against whom: one line."""
    ranks = "1 rank" if world.size == 1 else f"{world.size} ranks"
    if settings.detox is not None:
        how = {"spread": "", "packed": ", packed", "worst": ", placed at worst"}[settings.placement]
        if settings.placement == "spread" and settings.reshuffle_every:
            every = settings.reshuffle_every
            how = " drawn every " + ("epoch" if every == 1 else f"{every} epochs")
        groups = world.size // settings.detox
        ranks += f" in {groups} {'group' if groups == 1 else 'groups'}{how}"
    if settings.adversaries:
        ranks += f", the last {settings.adversaries} hostile ({settings.attack})"
    first = results[0]
    return f"{data} on {ranks}: {first.steps} steps, {first.parameters:,} parameters"


def _caption(results: Sequence[Result]) -> str:
    apart = [r.label for r in results if not r.identical]
    lines = ["Final parameters are equal on all ranks, bit for bit, in every row."]
    if apart:
        lines = [f"PARAMETERS DIFFER BETWEEN RANKS: {', '.join(apart)}."]
    lines.append("Bytes are one rank's; times fewer: than fp32 over the same transport.")
    if any(r.wire is not None for r in results):
        lines.append("On wire: TCP over loopback, headers included, as the kernel counts it.")
    return "\n".join(lines)


def _document(
    results: Sequence[Result], settings: Settings, world: TrainingWorld, data: str, command: str
) -> dict[str, Any]:
    """Everything that was measured, and on what."""
    head = files.header()
    return {
        **head,
        "command": command,
        "ranks": world.size,
        "one_machine": world.one_machine,
        "data": data,
        "settings": asdict(settings),
        "versions": {**head["versions"], "library": world.library},
        "ways": [{**asdict(r), "fewer_than_fp32": fewer(r, results)} for r in results],
    }
