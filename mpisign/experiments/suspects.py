"""Which ranks are suspected, by how far they were from the votes of their groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

import mpisign
from mpisign.detox import Groups, Partition
from mpisign.experiments.world import TrainingWorld

Verdict = Literal["suspect", "unclear", "inconspicuous"]

_ROUNDING = 0.05  # of the votes: more than rounding makes
_MEDIAN = 2.0  # times as far from its group as the median rank
_OTHERS = 1.5  # times as far as any other member
_MARKS = 128  # steps of a draw that are remembered, to find its middle
_ROUNDS = 50


@dataclass(frozen=True)
class Suspect:
    """One rank, by the counts of all ranks."""

    rank: int
    share: float
    flagged: float
    odd: int
    draws: int
    suspicion: float
    verdict: Verdict
    tallies: int
    coordinates: int
    differing: int
    times_flagged: int


class Watch:
    """Reads ``mpisign.stats().suspects`` after each step; only the second half of a draw counts."""

    def __init__(self, groups: Groups) -> None:
        self._groups = groups
        self._draw, self._members = groups.draw, groups.members
        self._seen: list[tuple[Partition, npt.NDArray[np.int64]]] = []
        self._marks = [self._counts()]

    def step(self) -> None:
        """A step is over."""
        if self._groups.draw != self._draw:
            self._close()
        self._marks.append(self._counts())
        if len(self._marks) > _MARKS:
            del self._marks[1:-1:2]

    def gather(self, world: TrainingWorld) -> list[Suspect] | None:
        """The suspects by all ranks' counts; None if nobody voted in groups. Collective."""
        self._close()
        seen = _of_all(world, self._counts()[None])
        if not seen.any():
            return None
        by_draw = _of_all(world, np.array([counts[:, :2] for _, counts in self._seen]))
        shares = _medians(by_draw[..., 1], by_draw[..., 0])
        members = [m for m, _ in self._seen]
        odd = np.array([odd_ones(s, m) for s, m in zip(shares, members, strict=True)])
        suspicion = weigh(odd, members)
        share = _medians(seen[..., 1], seen[..., 0])[0]
        flagged = _medians(seen[..., 3], seen[..., 2])[0]
        return [
            Suspect(
                rank,
                float(share[rank]),
                float(flagged[rank]),
                int(odd[:, rank].sum()),
                len(odd),
                float(suspicion[rank]),
                verdict(suspicion[rank]),
                *(int(seen[:, 0, rank, i].sum()) for i in (2, 0, 1, 3)),
            )
            for rank in range(self._groups.size)
        ]

    def _counts(self) -> npt.NDArray[np.int64]:
        counts = np.zeros((self._groups.size, 4), dtype=np.int64)
        for rank, d in mpisign.stats().suspects.items():
            counts[rank] = d.coordinates, d.differing, d.tallies, d.flagged
        return counts

    def _close(self) -> None:
        marks = self._marks
        self._seen.append((self._members, marks[-1] - marks[(len(marks) - 1) // 2]))
        self._draw, self._members = self._groups.draw, self._groups.members
        self._marks = [marks[-1]]


def odd_ones(shares: Sequence[float], members: Partition) -> list[bool]:
    """At most one of a group: far from its votes, farther than the median and any other member."""
    far = max(_ROUNDING, _MEDIAN * float(np.median(shares)))
    odd = [False] * len(shares)
    for group in members:
        if len(group) < 3:
            continue
        second, first = sorted(group, key=lambda rank: shares[rank])[-2:]
        odd[first] = shares[first] > max(far, _OTHERS * shares[second])
    return odd


def weigh(odd: npt.NDArray[Any], members: Sequence[Partition]) -> npt.NDArray[np.float64]:
    """Suspicions in [0, 1]: shares of odd draws, weighted by the trust in the other members."""
    suspicion = np.zeros(odd.shape[1])
    for _ in range(_ROUNDS):
        trust = 1 - suspicion
        found, weight = np.zeros_like(suspicion), np.zeros_like(suspicion)
        for row, groups in zip(odd, members, strict=True):
            for group in groups:
                for rank in group:
                    others = [trust[r] for r in group if r != rank and not row[r]]
                    # Never 0: if all others are suspects, these draws are all that is known.
                    w = float(np.prod(others)) + 1e-9
                    found[rank] += w * row[rank]
                    weight[rank] += w
        suspicion = found / weight
    return suspicion


def verdict(suspicion: float) -> Verdict:
    """The verdict. Honest ranks stay below 1/2 where most groups have honest majorities."""
    return "suspect" if suspicion > 1 / 2 else "unclear" if suspicion > 1 / 3 else "inconspicuous"


def _of_all(world: TrainingWorld, own: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return world.gather(own.reshape(-1)).reshape(world.size, *own.shape)


def _medians(counts: npt.NDArray[np.int64], of: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Of ``counts / of`` (reporters, ...) over the reporters that saw any: (...)."""
    ratios = np.ma.masked_array(counts / np.maximum(of, 1), mask=of == 0)
    return np.asarray(np.ma.median(ratios, axis=0).filled(0.0))
