"""``mpisign bench scale``: what votes send and hold among ranks that need not exist."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from mpisign.bench import report
from mpisign.bench.progress import progress
from mpisign.bench.record import Record
from mpisign.bench.scale_shown import SHOWN
from mpisign.bench.settings import ScaleSettings
from mpisign.collectives import auto, costs, traffic
from mpisign.collectives.costs import Costs
from mpisign.collectives.hierarchy import Hierarchy, grouped
from mpisign.experiments.errors import SettingsError
from mpisign.transports.base import Transport

#: Two networks whose nodes share one link: a cluster's (200 Gbit/s, 5 us, 1 us a message) and
#: Ethernet (1 Gbit/s, 50 us, 5 us a message). Bytes of all ranks of a node cross its link.
_CLUSTER, _ETHERNET = (5e-6, 1e-6, 200e9), (50e-6, 5e-6, 1e9)
_STEPS = 8  # lengths a factor of ten, of which it is asked what "auto" takes
_SHORTEST, _LONGEST = 3, 10  # powers of ten


@dataclass(frozen=True)
class ScaleRow:
    """One algorithm at one number of ranks and coordinates: the busiest rank's part.

    ``levels``: 1: nodes; 2: racks too; 0 where the algorithm has none.
    """

    ranks: int
    size: int
    levels: int
    traffic: traffic.VoteTraffic

    @property
    def label(self) -> str:
        """The algorithm's name in tables."""
        return _label(self.traffic.algorithm, self.levels)


@dataclass(frozen=True)
class Choice:
    """What "auto" takes among so many ranks for lengths from ``first`` to ``last``."""

    network: str
    ranks: int
    label: str
    first: int
    last: int


@dataclass(kw_only=True)
class ScaleRecord(Record):
    """One run of ``mpisign bench scale``."""

    costs: dict[str, Costs] = field(default_factory=dict)
    choices: list[Choice] = field(default_factory=list)


def run(settings: ScaleSettings, command: str) -> int:
    """Counts and reports; the exit status. Raises SettingsError."""
    record = ScaleRecord(name=settings.NAME, command=command, settings=settings)
    report.check(record, SHOWN)
    record.costs = _networks(settings)
    return report.run(record, SHOWN, lambda: _count(record))


def _networks(s: ScaleSettings) -> dict[str, Costs]:
    if s.costs is not None:
        try:
            return {f"the costs in {s.costs.name}": costs.read(str(s.costs))}
        except ValueError as error:
            raise SettingsError(f"--costs: {error}") from error
    found = {}
    for latency, message, rate in (_CLUSTER, _ETHERNET):
        name = f"{rate / 1e9:g} Gbit/s a node, {latency * 1e6:g} us, {message * 1e6:g} us a message"
        found[name] = Costs(2e-6, 1e-10, latency, 8 * s.node / rate, 3e-7, message)
    return found


def _count(record: ScaleRecord) -> None:
    s: ScaleSettings = record.settings
    with progress(len(s.ranks) * (len(s.sizes) + len(record.costs))) as begin:
        for ranks in s.ranks:
            nodes = [r // s.node for r in range(ranks)]
            racks = [nodes, [n // s.rack for n in nodes]]
            for size in s.sizes:
                begin(f"{ranks} ranks, {size} coordinates")
                for algorithm, levels in (
                    ("allgather", 0),
                    ("alltoall", 0),
                    ("hierarchical", 1),
                    ("hierarchical", 2),
                ):
                    found = traffic.vote_traffic(
                        size, ranks, algorithm=algorithm, nodes=racks[:levels] or None
                    )
                    record.rows.append(ScaleRow(ranks, size, levels, found))
            hierarchy = Hierarchy([grouped(level) for level in racks])
            for network, of in record.costs.items():
                begin(f"{ranks} ranks, auto")
                record.choices += _choices(network, of, hierarchy)


def _choices(network: str, of: Costs, hierarchy: Hierarchy) -> Iterator[Choice]:
    powers = range(_SHORTEST * _STEPS, _LONGEST * _STEPS + 1)
    lengths = [round(10 ** (power / _STEPS)) for power in powers]
    taken = [
        (_label(*auto.cheapest(of, hierarchy, 2, length, 1, 1, Transport.message)), length)
        for length in lengths
    ]
    for label, run_ in groupby(taken, key=lambda choice: choice[0]):
        of_label = [length for _, length in run_]
        yield Choice(network, hierarchy.size, label, of_label[0], of_label[-1])


def _label(algorithm: Any, levels: int) -> str:
    return algorithm if not levels else f"{algorithm}, {('nodes', 'racks')[levels - 1]}"
