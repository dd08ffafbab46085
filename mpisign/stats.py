"""Totals of this process: bytes, calls and seconds of each stage, distances of each rank."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from mpisign import launcher, prometheus, tracing
from mpisign.census import VoteCounts

_LOCK = threading.Lock()
STAGES = ("pack", "exchange", "vote", "unpack")
_ODD = 0.05  # of the coordinates: more than rounding on a GPU changes
_UNLIKE = 0.03  # on one batch 0, on a GPU a little more; on other batches 0.05 to 0.25
_FEW = 4  # coordinates in which any rank may differ
_TALLIES = 32  # pieces a rank before a warning


@dataclass
class Stage:
    """Totals of one stage.

    ``sent`` and ``received`` are payload bytes to and from other ranks. An allreduce of the wire
    hides its messages and counts as a ring: 2 (p - 1) / p of the buffer in each direction.
    """

    calls: int = 0
    seconds: float = 0.0
    sent: int = 0
    received: int = 0


@dataclass
class Distance:
    """How far one rank's votes were from its group's, in what this process tallied.

    ``coordinates`` were compared in ``tallies`` pieces; in ``differing`` of them the rank and its
    group voted unlike. ``flagged`` counts the pieces in which the rank was the odd one out: it
    differed in over 5% of the coordinates, in more than 4, and in more than twice as many as any
    other member.
    """

    tallies: int = 0
    coordinates: int = 0
    differing: int = 0
    flagged: int = 0

    @property
    def share(self) -> float:
        """``differing`` of ``coordinates``, from 0 to 1."""
        return self.differing / max(1, self.coordinates)


@dataclass
class Stats:
    """Totals of the process since its start or the last ``reset``.

    Args:
        stages: ``Stage`` by name: "pack", "exchange", "vote", "unpack".
        suspects: ``Distance`` by rank of the communicator, where ranks vote in groups (DETOX). A
            process sees the shards that it tallies: its own with alltoall-vote, all with
            allgather-vote.
        votes: ``VoteCounts``: margins, ties and abstentions of a sample, where one is taken.
    """

    stages: dict[str, Stage] = field(default_factory=lambda: {s: Stage() for s in STAGES})
    suspects: dict[int, Distance] = field(default_factory=dict)
    votes: VoteCounts = field(default_factory=VoteCounts)
    _recent: dict[int, Distance] = field(default_factory=dict)  # since the last look
    _doubted: bool = False

    def add(
        self, stage: str, *, calls: int = 1, seconds: float = 0.0, sent: int = 0, received: int = 0
    ) -> None:
        """Adds to a stage's totals; KeyError for an unknown stage."""
        with _LOCK:  # simulated ranks are threads of one process
            s = self.stages[stage]
            s.calls += calls
            s.seconds += seconds
            s.sent += sent
            s.received += received

    def add_distances(
        self, groups: Sequence[Sequence[int]], coordinates: int, differing: Sequence[int]
    ) -> None:
        """Adds one tally; ``differing``: one count a rank, in the groups' order.

        Warns once if most ranks vote unlike their groups: their batches differ.
        """
        least = max(_ODD * coordinates, _FEW)
        with _LOCK:
            first = 0
            for group in groups:
                own = differing[first : first + len(group)]
                first += len(group)
                second = sorted(own)[-2] if len(own) > 1 else 0
                for rank, count in zip(group, own, strict=True):
                    odd = len(own) > 2 and count > least and count > 2 * second
                    for table in (self.suspects, self._recent):
                        d = table.setdefault(rank, Distance())
                        d.tallies += 1
                        d.coordinates += coordinates
                        d.differing += count
                        d.flagged += odd
            doubt = self._doubt() if not self._doubted else 0.0
        if doubt:
            self._doubted = True
            warnings.warn(
                f"most ranks' votes differ from their group's, in {doubt:.0%} of the coordinates: "
                "do the members of a group get the same batches (mpisign.detox.GroupSampler), by "
                "the groups that the compressor has?",
                RuntimeWarning,
                stacklevel=2,
            )

    def _doubt(self) -> float:
        """The median rank's recent share if members cannot have had the same batches, else 0."""
        found = list(self._recent.values())
        if not found or min(d.tallies for d in found) < _TALLIES:
            return 0.0
        self._recent = {}
        median = sorted(d.share for d in found)[len(found) // 2]
        return median if median > _UNLIKE else 0.0

    def suspects_table(self) -> str:
        """``suspects`` as text, a row a rank."""
        lines = [f"{'rank':<6}{'tallies':>10}{'coordinates':>16}{'differing':>12}{'flagged':>10}"]
        for rank, d in sorted(self.suspects.items()):
            share = f"{d.share:.2%}"
            lines.append(f"{rank:<6}{d.tallies:>10}{d.coordinates:>16}{share:>12}{d.flagged:>10}")
        return "\n".join(lines)

    def reset(self) -> None:
        """Sets every total to zero."""
        with _LOCK:
            self.suspects.clear()
            self._recent.clear()
            self._doubted = False
            for name in self.stages:
                self.stages[name] = Stage()
            self.votes = VoteCounts()

    def as_dict(self) -> dict[str, dict[str, float]]:
        """``{stage: {"calls", "seconds", "sent", "received"}}``."""
        return {name: asdict(stage) for name, stage in self.stages.items()}

    def table(self) -> str:
        """The totals as text, a row a stage."""
        lines = [f"{'stage':<10}{'calls':>10}{'seconds':>12}{'sent B':>16}{'received B':>16}"]
        for name, s in self.stages.items():
            lines.append(f"{name:<10}{s.calls:>10}{s.seconds:>12.4f}{s.sent:>16}{s.received:>16}")
        return "\n".join(lines)

    __str__ = table

    def prometheus(self, labels: Mapping[str, Any] | None = None) -> str:
        """The totals in Prometheus' text format, for a scrape or a textfile collector.

        Args:
            labels: of every sample, default ``{"rank": ...}`` where a launcher says which.

        Returns:
            Lines of metrics that begin with ``mpisign_``. A ``reset`` is what Prometheus calls a
            counter reset: its ``rate()`` allows for it.

        Example:
            >>> import mpisign
            >>> print(mpisign.stats().prometheus({"rank": 0}).splitlines()[2][:45])
            mpisign_stage_calls_total{rank="0",stage="pac
        """
        if labels is None:
            rank = launcher.rank()
            labels = {} if rank is None else {"rank": rank}
        return prometheus.text(self, labels)


_STATS = Stats()


def stats() -> Stats:
    """Returns the totals of this process.

    Example:
        >>> import mpisign
        >>> mpisign.stats().reset()
        >>> mpisign.stats().as_dict()["exchange"]["sent"]
        0
    """
    return _STATS


def count_bytes(sent: int, received: int) -> None:
    """Adds payload bytes of an exchange."""
    with _LOCK:
        s = _STATS.stages["exchange"]
        s.sent += sent
        s.received += received


def count_ring(nbytes: int, size: int) -> None:
    """Adds an allreduce of ``nbytes`` among ``size`` ranks, as the ring that it is at best."""
    ring = 2 * nbytes * (size - 1) // size
    count_bytes(ring, ring)


_CLOCKS = {name: tracing.clock(name) for name in STAGES}
#: What ``count_stage`` takes as ``start``: the time, and with MPISIGN_NVTX a range is open.
begin_pack, begin_exchange, begin_vote, begin_unpack = _CLOCKS.values()


def count_stage(name: str, start: float) -> None:
    """Adds one call of a stage that began at ``start``, of ``begin_pack`` and so on."""
    end = time.perf_counter()
    with _LOCK:
        s = _STATS.stages[name]
        s.calls += 1
        s.seconds += end - start
    if tracing.on:
        tracing.end_stage(name, start, end)


class stage:
    """``with stage(name):`` adds one call of a stage and the seconds of the block."""

    __slots__ = ("_name", "_start")

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        self._start = _CLOCKS[self._name]()

    def __exit__(self, *error: object) -> None:
        count_stage(self._name, self._start)
