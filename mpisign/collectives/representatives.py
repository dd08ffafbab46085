"""One row of each group of ranks: what most of its members hold, sent by one of them, checked."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpisign.collectives.robust_aggregate import infinite
from mpisign.collectives.robust_shards import Flags, Shards
from mpisign.collectives.sketch import WIDTH, agreement, sketch
from mpisign.engine.agreement import name_ranks
from mpisign.engine.echo import DIGEST, digest, echo
from mpisign.errors import WireError
from mpisign.stats import stage, stats
from mpisign.transports.base import Bytes, Steps
from mpisign.transports.tagged import TaggedTransport

_COUNT = 8  # bytes


@dataclass
class Representatives:
    """One rank's part, step by step. ``majorities``: of each group, the members that are alike."""

    wire: TaggedTransport
    flat: Any
    groups: Sequence[Sequence[int]]
    turn: int
    tolerance: float
    function: str

    def __post_init__(self) -> None:
        p = self.wire.size
        self.shards = Shards(self.flat.size, p)
        self._parts = [self.shards.whole(r) for r in range(p)]
        self._told = np.zeros((p, _COUNT + p * DIGEST), dtype=np.uint8)
        self._sketches: Any = None
        self._seed = b""
        self._group_of = {r: g for g, members in enumerate(self.groups) for r in members}
        self.majorities: list[list[int]] = []
        self.unmet: set[int] = set()  # groups of whose row nobody sent what was committed to
        self.lost: Flags = np.zeros(len(self.groups), dtype=bool)

    @property
    def infinite(self) -> Any:
        """By rank, how many coordinates it said are not finite."""
        return np.ascontiguousarray(self._told[:, :_COUNT]).view("<u8")[:, 0]

    def commit(self) -> Steps[None]:
        """What each rank holds, as digests of its shards; the same ones told to all."""
        own = self._told[self.wire.rank]
        with stage("pack"):
            own[:_COUNT] = np.array([infinite(self.flat)], "<u8").view(np.uint8)
            for s, part in enumerate(self._parts):
                own[_COUNT + s * DIGEST :][:DIGEST] = digest(self.flat[part].view(np.uint8))
        yield self.wire.allgather(own.copy(), self._told)
        yield from self._echo(self._told, "commitments")

    def compare(self) -> Steps[None]:
        """Sketches by a seed that follows from all commitments."""
        p = self.wire.size
        self._seed = digest(self._told).tobytes()
        self._sketches = np.zeros((p, p, WIDTH), dtype="<f4")
        mine = self._sketches[self.wire.rank]
        with stage("pack"):
            for s, part in enumerate(self._parts):
                mine[s] = sketch(self.flat[part], self._seed, s)
        rows = self._sketches.reshape(p, -1).view(np.uint8)
        yield self.wire.allgather(rows[self.wire.rank].copy(), rows)
        yield from self._echo(rows, "sketches")

    def decide(self) -> None:
        """Each group's majority, the same on all ranks; books how far others are from it."""
        differing: list[int] = []
        for g, members in enumerate(self.groups):
            of = sorted(members)
            if self._sketches is None:
                said = [self._told[r].tobytes() for r in of]
                alike = np.array([[a == b for b in said] for a in said])
            else:
                alike = agreement(self._sketches[of], self.tolerance)
            alike &= self.infinite[of] == 0
            most = 2 * alike.sum(axis=1) > len(of)
            self.majorities.append([r for r, m in zip(of, most, strict=True) if m])
            self.lost[g] = not most.any()
            differing += [self._differing(r, self.majorities[g]) for r in members]
        stats().add_distances(self.groups, self.flat.size, differing)

    def fetch(self) -> Steps[Any]:
        """This rank's shard of every group's row: float32 (q, w), NaN where nobody sent it."""
        wire, rank, others = self.wire, self.wire.rank, self.wire.others
        mine = self._parts[rank]
        rows = np.full((len(self.groups), mine.stop - mine.start), np.nan, dtype="<f4")
        home = self._group_of[rank]
        came: dict[int, int] = {}
        for g in np.flatnonzero(~self.lost).tolist():
            came[g] = self._speaker(g, rank)
            if came[g] == rank:
                rows[g] = self.flat[mine]
                del came[g]
        sends = [] if self.lost[home] else [o for o in others if self._speaker(home, o) == rank]
        yield wire.exchange(
            [(o, self._bytes(o)) for o in sends],
            [(r, rows[g].view(np.uint8)) for g, r in came.items()],
        )
        liars = [g for g, r in came.items() if not self._fits(rows[g], r)]
        yield from self._ask(rows, {g: came[g] for g in liars})
        return rows

    def _ask(self, rows: Any, liars: dict[int, int]) -> Steps[None]:
        """The next of the majority for what did not fit; ``liars``: who sent it, by group."""
        wire, rank, others = self.wire, self.wire.rank, self.wire.others
        asked = np.zeros((wire.size, 1), dtype=np.uint8)
        wanted = np.zeros((wire.size, 1), dtype=np.uint8)
        sources: list[tuple[int, int, Any]] = []
        for g, liar in liars.items():
            rows[g] = np.nan
            majority = self.majorities[g]
            at = majority.index(liar)
            following = majority[at + 1 :] + majority[:at]
            for r in following[: (len(self.groups[g]) - 1) // 2]:
                asked[r] = 1
                sources.append((g, r, np.empty_like(rows[g])))
        yield wire.exchange([(o, asked[o]) for o in others], [(r, wanted[r]) for r in others])
        yield wire.exchange(
            [(o, self._bytes(o)) for o in others if wanted[o, 0]],
            [(r, row.view(np.uint8)) for _, r, row in sources],
        )
        told = set(liars.values())
        found: set[int] = set()
        for g, r, row in sources:
            if not self._fits(row, r):
                told.add(r)
            elif g not in found:
                found.add(g)
                rows[g] = row
        if told:
            self.unmet = set(liars) - found
            left = [name_ranks(sorted(self.groups[g])) for g in sorted(self.unmet)]
            also = f"; nobody else of {' and '.join(left)} had it: left out" if left else ""
            warnings.warn(
                f"{self.function}: {name_ranks(sorted(told))} sent other data than committed to; "
                f"rank {rank} asked the next of the group{also}",
                RuntimeWarning,
                2,
            )

    def _speaker(self, g: int, owner: int) -> int:
        """Who sends a group's shard to its owner."""
        majority = self.majorities[g]
        return owner if owner in majority else majority[(owner + self.turn) % len(majority)]

    def _differing(self, rank: int, majority: Sequence[int]) -> int:
        """Coordinates of the shards in which a rank holds something else than its group's majority.

        With a tolerance all or none. A group without a majority has no verdict.
        """
        if not majority or rank in majority:
            return 0
        if self._sketches is not None:
            return int(self.flat.size)
        digests = self._told[[rank, majority[0]], _COUNT:].reshape(2, -1, DIGEST)
        other = (digests[0] != digests[1]).any(axis=1)
        return sum(p.stop - p.start for p, o in zip(self._parts, other, strict=True) if o)

    def _fits(self, row: Any, sender: int) -> bool:
        """Whether ``row`` is what ``sender`` committed to, as this rank's shard."""
        rank = self.wire.rank
        with stage("vote"):
            committed = self._told[sender, _COUNT + rank * DIGEST :][:DIGEST]
            if (digest(row.view(np.uint8)) != committed).any():
                return False
            if self._sketches is None:
                return True
            said = self._sketches[sender, rank]
            return sketch(row, self._seed, rank).tobytes() == said.tobytes()

    def _bytes(self, owner: int) -> Bytes:
        part: Bytes = self.flat[self._parts[owner]].view(np.uint8)
        return part

    def _echo(self, rows: Bytes, what: str) -> Steps[None]:
        told = yield from echo(self.wire, rows, self.wire.size)  # all must have been told the same
        if not all(told.trusted):
            raise WireError(told.blame(what))
