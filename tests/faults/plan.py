"""Which jobs a campaign has: drawn by a seed, over all kinds, front ends and wires."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

from faults.kinds import FRONTS, Kind, known

#: A few for CI: cheap to start, of every sort.
SHORT = (
    "killed functions mpi",
    "ends functions mpi",
    "paused functions mpi",
    "too-late functions mpi",
    "calls-another-function functions mpi",
    "another-length functions mpi",
    "another-learning-rate plain mpi",
    "equivocates-under-byzantine-f functions mpi",
    "a-nan ddp torch",
    "another-seed hvd-by-name horovod-mpi",
)


@dataclass(frozen=True)
class Job:
    """One job: ``odd`` is the rank with the fault, which it has at step ``at`` of ``steps``."""

    kind: str
    front: str
    wire: str
    ranks: int = 3
    odd: int = 1
    at: int = 3
    steps: int = 8
    length: int = 20_000
    compression: str = "sign"
    algorithm: str = "auto"
    byzantine_f: int = 0
    seed: int = 0
    limit: int = 60

    @property
    def name(self) -> str:
        return f"{self.kind} {self.front} {self.wire}"

    def words(self) -> list[str]:
        """What ``rank.py`` is given."""
        return [f"{f.name}={getattr(self, f.name)}" for f in fields(self)]

    @classmethod
    def read(cls, words: list[str]) -> Job:
        """The job of ``words()``."""
        kinds = {f.name: f.type for f in fields(cls)}
        pairs = [word.split("=", 1) for word in words]
        return cls(**{k: int(v) if kinds[k] == "int" else v for k, v in pairs})


def places(kind: Kind, wires: list[str]) -> list[tuple[str, str]]:
    """Where it can be done."""
    return [(f, w) for f, on in FRONTS.items() for w in on if w in wires and kind.fits(f, w)]


def drawn(kind: Kind, front: str, wire: str, rng: random.Random) -> Job:
    """A job with its numbers drawn."""
    ranks = rng.choice(kind.ranks)
    settings: dict[str, Any] = {
        "ranks": ranks,
        "odd": rng.randrange(ranks),
        "at": rng.randrange(1, 5),
        "length": rng.choice([1000, 20_000, 100_000]),
        "compression": "sign" if front in ("functions", "fsdp") else rng.choice(["sign", "signum"]),
        "seed": rng.randrange(1000),
    }
    if front in ("functions", "plain"):
        settings["algorithm"] = rng.choice(["auto", "allgather", "alltoall", "hierarchical"])
    settings.update(kind.settings)
    if front == "fsdp":
        settings["compression"] = "sign"
    if settings.get("byzantine_f"):
        settings["algorithm"] = "auto"
    return Job(kind.name, front, wire, **settings)


def _rounds(kinds: list[Kind], wires: list[str], rng: random.Random) -> Iterator[Job]:
    """Every kind in turn, each time somewhere else, where there were the fewest jobs so far."""
    left: dict[str, list[tuple[str, str]]] = {}
    taken: Counter[tuple[str, str]] = Counter()
    possible = [k for k in kinds if places(k, wires)]
    while possible:
        for kind in rng.sample(possible, len(possible)):
            if not left.get(kind.name):
                left[kind.name] = places(kind, wires)
                rng.shuffle(left[kind.name])
            place = min(left[kind.name], key=lambda place: taken[place])
            left[kind.name].remove(place)
            taken[place] += 1
            yield drawn(kind, *place, rng)


def plan(seed: int, jobs: int, wires: list[str], only: str | None = None) -> list[Job]:
    """``jobs`` jobs. Of ``only`` one kind, or of one "KIND FRONT WIRE"."""
    kinds, rng = [k for k in known().values() if not k.planted], random.Random(seed)
    if only is not None:
        name, *place = only.split()
        kind = known()[name]
        if place:
            return [drawn(kind, *place, rng) for _ in range(jobs)]
        kinds = [kind]
    made = _rounds(kinds, wires, rng)
    return [job for job, _ in zip(made, range(jobs), strict=False)]


def short(seed: int, wires: list[str]) -> list[Job]:
    """The jobs of ``SHORT``."""
    rng, found = random.Random(seed), []
    for text in SHORT:
        name, front, wire = text.split()
        if wire in wires:
            job = drawn(known()[name], front, wire, rng)
            ranks = job.ranks if job.byzantine_f else 3 if front == "functions" else 2
            found.append(replace(job, ranks=ranks, odd=job.odd % ranks))
    return found


def planted(seed: int) -> list[Job]:
    """Jobs that must be found to end badly."""
    rng = random.Random(seed)
    kinds = [k for k in known().values() if k.planted]
    return [drawn(kind, "functions", "mpi", rng) for kind in kinds]
