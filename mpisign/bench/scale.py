"""``mpisign bench scale``: what votes send and hold among ranks that need not exist."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from mpisign import policies
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

#: Two networks whose nodes share one link: bits a second, seconds of an exchange, of a message.
_CLUSTER, _ETHERNET = (200e9, 5e-6, 1e-6), (1e9, 50e-6, 5e-6)
#: Powers of ten: lengths for which it is asked what "auto" takes. Between two of them that differ
#: the place of the switch is sought, to an eighth of a power.
_POWERS = range(3, 11)
_FINE = 8


_ALGORITHMS: tuple[tuple[policies.Algorithm, int], ...] = (
    ("allgather", 0),
    ("alltoall", 0),
    ("hierarchical", 1),
    ("hierarchical", 2),
)


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
    """One run of ``mpisign bench scale``.

    ``costs``: by name of the network, what "auto" reckons with and ranks a node.
    """

    costs: dict[str, tuple[Costs, int]] = field(default_factory=dict)
    choices: list[Choice] = field(default_factory=list)


def run(settings: ScaleSettings, command: str) -> int:
    """Counts and reports; the exit status. Raises SettingsError."""
    record = ScaleRecord(name=settings.NAME, command=command, settings=settings)
    report.check(record, SHOWN)
    record.costs = _networks(settings)
    return report.run(record, SHOWN, lambda: _count(record))


def _networks(s: ScaleSettings) -> dict[str, tuple[Costs, int]]:
    if s.costs is not None:
        try:
            return {f"{s.node} ranks a node, {s.costs.name}": (costs.read(str(s.costs)), s.node)}
        except ValueError as error:
            raise SettingsError(f"--costs: {error}") from error
    found = {}
    for node in dict.fromkeys((s.node, 1)):
        for rate, latency, message in (_CLUSTER, _ETHERNET):
            ranks = f"{node} rank{'s' if node > 1 else ''} a node"
            wire = f"{rate / 1e9:g} Gbit/s, {latency * 1e6:g} us, {message * 1e6:g} us a message"
            of = Costs(2e-6, 1e-10, latency, 8 * node / rate, 3e-7, message)
            found[f"{ranks}, {wire}"] = of, node
    return found


def _count(record: ScaleRecord) -> None:
    s: ScaleSettings = record.settings
    between = s.ranks[0], s.ranks[-1]
    everywhere = {*s.ranks, *(1 << i for i in range(17) if between[0] < 1 << i < between[1])}
    with progress(len(s.ranks) * len(s.sizes) + len(everywhere)) as begin:
        for size in s.sizes:
            for ranks in s.ranks:
                begin(f"{ranks} ranks, {size} coordinates")
                levels = _levels(ranks, s.node, s.rack)
                for algorithm, depth in _ALGORITHMS:
                    found = traffic.vote_traffic(
                        size, ranks, algorithm=algorithm, nodes=levels[:depth] or None
                    )
                    record.rows.append(ScaleRow(ranks, size, depth, found))
        for ranks in sorted(everywhere):
            begin(f"{ranks} ranks, auto")
            for network, (of, node) in record.costs.items():
                levels = _levels(ranks, node, s.rack)
                record.choices += _choices(network, of, Hierarchy([*map(grouped, levels)]))


def _levels(ranks: int, node: int, rack: int) -> list[list[int]]:
    nodes = [r // node for r in range(ranks)]
    return [nodes, [n // rack for n in nodes]]


def _choices(network: str, of: Costs, hierarchy: Hierarchy) -> Iterator[Choice]:
    def taken(length: int) -> str:
        return _label(*auto.cheapest(of, hierarchy, 2, length, 1, 1, Transport.message))

    def until(low: int, high: int) -> Iterator[tuple[str, int]]:
        """(what is taken, the last length of it) between two powers, in eighths, half by half."""
        here, there = (taken(round(10 ** (at / _FINE))) for at in (low, high))
        if here == there:
            return
        if high - low == 1:
            yield here, round(10 ** ((low + high) / 2 / _FINE))
            return
        middle = (low + high) // 2
        yield from until(low, middle)
        yield from until(middle, high)

    first = 10 ** _POWERS[0]
    for low, high in pairwise(_POWERS):
        for label, last in until(low * _FINE, high * _FINE):
            yield Choice(network, hierarchy.size, label, first, last)
            first = last
    yield Choice(network, hierarchy.size, taken(10 ** _POWERS[-1]), first, 10 ** _POWERS[-1])


def _label(algorithm: Any, levels: int) -> str:
    return algorithm if not levels else f"{algorithm}, {('nodes', 'racks')[levels - 1]}"
