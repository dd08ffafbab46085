"""How a job ended, by what its ranks wrote and what was left of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from faults.kinds import ENDS, Kind
from faults.launch import Ended
from faults.plan import Job

WELL, WRONG, HANG, ORPHAN, NOBODY = WORDS = (
    "ended well",
    "wrong result",
    "hang",
    "orphan",
    "names nobody",
)


@dataclass
class Record:
    """What one rank wrote."""

    calls: list[tuple[str, bool]] = field(default_factory=list)  # (digest, right) of each step
    end: str | None = None  # "done", "error", "left"; None: it wrote none
    text: str = ""
    seconds: float = 0.0  # from the beginning of the step that raised

    @classmethod
    def read(cls, path: Path) -> Record:
        """Of a rank's file, which may be missing or torn."""
        found = cls()
        lines = path.read_text().splitlines() if path.exists() else []
        for line in lines:
            try:
                told = json.loads(line)
            except ValueError:
                continue
            if "call" in told:
                found.calls.append((told["digest"], told["right"]))
            elif "end" in told and found.end in (None, "left"):
                found.end, found.text = told["end"], told.get("text", "")
                found.seconds = told.get("seconds", 0.0)
        return found


@dataclass(frozen=True)
class Verdict:
    """One of ``WORDS``, and why."""

    word: str
    why: str = ""


def named(text: str) -> set[int]:
    """The ranks that a message names."""
    found: set[int] = set()
    for numbers in re.findall(r"\branks? (\d+(?:-\d+)?(?:(?:, | and )\d+(?:-\d+)?)*)", text):
        for part in re.findall(r"(\d+)(?:-(\d+))?", numbers):
            found |= set(range(int(part[0]), int(part[1] or part[0]) + 1))
    return found


def judge(job: Job, kind: Kind, ended: Ended, records: list[Record]) -> Verdict:
    """The first thing that is wrong."""
    if ended.status is None:
        return Verdict(HANG, f"killed {job.limit} s after the last word; {_ends(records)}")
    if ended.left:
        return Verdict(ORPHAN, f"lived on: {ended.left[0][:120]}")
    for verdict in _wrong(job, kind, records):
        return verdict
    return Verdict(WELL)


def _ends(records: list[Record]) -> str:
    return "; ".join(f"rank {r}: {x.end or 'nothing'} {x.text}" for r, x in enumerate(records))


def _wrong(job: Job, kind: Kind, records: list[Record]) -> Iterator[Verdict]:
    others = {r: x for r, x in enumerate(records) if r != job.odd}
    every = dict(enumerate(records))
    yield from _results(job, kind, every if kind.ends == "right" else others)
    for r, x in others.items():
        if x.end is None and kind.ends != "leaves":
            yield Verdict(WRONG, f"rank {r} died without a word")
    done = {r for r, x in every.items() if x.end == "done"}
    errors = {r: x.text for r, x in others.items() if x.end == "error"}
    if kind.ends == "right":
        for r, x in every.items():
            if x.end != "done":
                yield Verdict(WRONG, f"rank {r} should have ended well: {x.text or x.end}")
        return
    if kind.ends == "either" and not errors:
        return
    if kind.ends in ("named", "leaves", "noticed", "either") and done & others.keys():
        names = ", ".join(map(str, sorted(done & others.keys())))
        yield Verdict(WRONG, f"ended as if nothing had happened: ranks {names}; {_ends(records)}")
    for r, text in errors.items():
        found = named(text)
        if not found:
            yield Verdict(NOBODY, f"rank {r}: {text}")
        elif kind.ends not in ("noticed", "alike") and job.odd not in found:
            yield Verdict(NOBODY, f"rank {r} names {sorted(found)}, not {job.odd}: {text}")
        if kind.says not in text:
            yield Verdict(NOBODY, f"rank {r} does not say {kind.says!r}: {text}")
    if kind.told:
        texts = {re.sub(r"\d+\.\d+ s", "# s", x.text) for x in records if x.end == "error"}
        if len(texts) > 1:
            yield Verdict(NOBODY, "not the same on all ranks: " + " | ".join(sorted(texts)))


def _results(job: Job, kind: Kind, ranks: dict[int, Record]) -> Iterator[Verdict]:
    assert kind.ends in ENDS
    if kind.ends == "noticed":
        return
    for i in range(max(len(x.calls) for x in ranks.values())):
        found = {r: x.calls[i] for r, x in ranks.items() if i < len(x.calls)}
        if len({digest for digest, _ in found.values() if digest}) > 1:
            yield Verdict(WRONG, f"call {i}: results differ among ranks {sorted(found)}")
        if kind.ends == "alike" and i >= job.at:
            continue
        for r, (_, right) in found.items():
            if not right:
                yield Verdict(WRONG, f"call {i}: not the majority on rank {r}")
