"""What exchanges cost between the ranks of a communicator: measured, or read from a file.

A cost file, named by ``MPISIGN_COSTS``, holds the numbers of ``Costs`` as JSON.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import MISSING, asdict, astuple, dataclass, fields
from pathlib import Path

import numpy as np

from mpisign.collectives.dry_run import DryRun, Load
from mpisign.engine.dissemination import all_same
from mpisign.transports.base import Steps
from mpisign.transports.tagged import TaggedTransport

_SMALL, _LARGE = 64, 1 << 19  # bytes of a message, and bytes that a rank sends in all
_PEERS = 64  # ranks, at most, that a rank exchanges messages with while costs are measured
_MORE = 4  # messages to a rank, where what one of them costs is measured
_TIMES = 3


@dataclass(frozen=True)
class Costs:
    """Seconds of an exchange of a rank with others in its node, and with ranks outside of it.

    ``local_latency`` + messages received x ``local_per_message`` + bytes received x
    ``local_per_byte``, and the same for ``remote``, while all ranks exchange at once. 0 for ranks
    that have no such others.
    """

    local_latency: float
    local_per_byte: float
    remote_latency: float
    remote_per_byte: float
    local_per_message: float = 0.0
    remote_per_message: float = 0.0

    def seconds(self, run: DryRun) -> float:
        """Of a collective whose chunks overlap: latencies of one chunk, all messages and bytes."""
        latency = sum(
            max(near * self.local_latency, far * self.remote_latency) for near, far in run.rounds
        )
        near = _seconds(run.near, self.local_per_message, self.local_per_byte)
        return latency + near + _seconds(run.far, self.remote_per_message, self.remote_per_byte)

    def save(self, path: str | Path) -> None:
        """Writes the file that ``MPISIGN_COSTS`` names."""
        Path(path).write_text(json.dumps(asdict(self), indent=1) + "\n")


def _seconds(load: Load, per_message: float, per_byte: float) -> float:
    messages, nbytes = max(load.sends, load.receives), max(load.sent, load.received)
    return messages * per_message + nbytes * per_byte


def measure_costs(wire: TaggedTransport, nodes: Sequence[Sequence[int]]) -> Steps[Costs]:
    """Measured, or read from the file of ``MPISIGN_COSTS``; the largest of all ranks for each."""
    path = os.environ.get("MPISIGN_COSTS")
    if path:
        own = read(path)
    else:
        number = {rank: i for i, node in enumerate(nodes) for rank in node}
        everyone = range(wire.size)
        near = _neighbours(wire.rank, [r for r in everyone if number[r] == number[wire.rank]])
        # Whom a rank sends to sends to it too: the other half of the circle, outside the nodes.
        far = [r for r in _neighbours(wire.rank, everyone) if number[r] != number[wire.rank]]
        local = yield from _measure(wire, near)
        remote = yield from _measure(wire, far)
        own = Costs(local[0], local[2], remote[0], remote[2], local[1], remote[1])
    row = np.array(astuple(own), dtype="<f8").view(np.uint8)
    rows = np.empty((wire.size, row.size), dtype=np.uint8)
    yield wire.allgather(row, rows)
    return Costs(*rows.view("<f8").max(axis=0).tolist())


def _neighbours(rank: int, ranks: Sequence[int]) -> list[int]:
    """The ranks before and after this one in a circle of ``ranks``, ``_PEERS`` at most."""
    n, place = len(ranks), ranks.index(rank)
    half = min(n // 2, _PEERS // 2)
    steps = dict.fromkeys(step % n for i in range(1, half + 1) for step in (i, -i))
    return [ranks[(place + step) % n] for step in steps]


def read(path: str) -> Costs:
    """The costs in a file; ValueError if it holds none."""
    names = [f.name for f in fields(Costs)]
    given = {f.name: f.default for f in fields(Costs) if f.default is not MISSING}
    try:
        data = {**given, **json.loads(Path(path).read_text())}
        numbers = [float(data[name]) for name in names]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"MPISIGN_COSTS: {path} must hold {', '.join(names)}: {error}") from None
    if not all(math.isfinite(n) and n >= 0 for n in numbers):
        raise ValueError(f"MPISIGN_COSTS: {path} must hold numbers from 0, got {numbers}")
    return Costs(*numbers)


def _measure(wire: TaggedTransport, ranks: Sequence[int]) -> Steps[tuple[float, float, float]]:
    """Seconds of exchanges with ``ranks``: of one as such, of each message, of each byte.

    The best of a few: with one message a rank, with ``_MORE``, and with one large one.
    """
    large = max(2 * _SMALL, _LARGE // max(1, min(_PEERS, wire.size - 1)))  # alike on all ranks
    best = []
    for each, nbytes in ((1, _SMALL), (_MORE, _SMALL), (1, large)):
        out, into = wire.empty(nbytes), [wire.empty(nbytes) for _ in range(each) for _ in ranks]
        out[...] = 0
        to = list(ranks) * each
        seconds = []
        for _ in range(_TIMES):
            yield from all_same(wire, np.zeros(1, dtype=np.uint8))  # all start together
            start = time.perf_counter()
            yield wire.exchange([(r, out) for r in to], list(zip(to, into, strict=True)))
            wire.transport.settle(out)
            seconds.append(time.perf_counter() - start)
        best.append(min(seconds))
    if not ranks:
        return 0.0, 0.0, 0.0
    further = max(0.0, best[1] - best[0]) / ((_MORE - 1) * len(ranks))
    message = min(further, 0.9 * best[0] / len(ranks))  # an exchange as such costs something too
    byte = max(0.0, best[2] - best[0]) / ((large - _SMALL) * len(ranks))
    return best[0] - len(ranks) * message, message, byte
