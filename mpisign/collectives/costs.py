"""What an exchange costs on a communicator: measured once, agreed by all ranks.

A cost file, of ``MPISIGN_COSTS``, holds the four numbers of ``Costs`` as JSON.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path

import numpy as np

from mpisign.transports.base import Steps
from mpisign.transports.tagged import TaggedTransport

_SMALL, _LARGE = 64, 1 << 19  # bytes that a rank sends in the two exchanges that are measured
_TIMES = 3


@dataclass(frozen=True)
class Costs:
    """Seconds of an exchange of a rank with all others in its node, and with all outside of it.

    ``local_latency`` + bytes received x ``local_per_byte``, and the same for ``remote``, while all
    ranks exchange at once. 0 for ranks that have no such others.
    """

    local_latency: float
    local_per_byte: float
    remote_latency: float
    remote_per_byte: float

    def exchange(self, local: float, remote: float, depth: int = 1) -> float:
        """Seconds for ``depth`` exchanges in a row, of so many bytes in the node and out of it."""
        latency = max(self.local_latency, self.remote_latency)
        return depth * latency + local * self.local_per_byte + remote * self.remote_per_byte

    def allgather(self, nbytes: int, k: int, node: int, size: int) -> float:
        """allgather-vote of planes of ``nbytes``, ``node`` ranks of ``size`` in this one's node."""
        return self.exchange(k * nbytes * (node - 1), k * nbytes * (size - node))

    def alltoall(self, nbytes: int, k: int, kd: int, node: int, size: int) -> float:
        """alltoall-vote."""
        shard = nbytes / size
        planes = k + kd
        return self.exchange(planes * shard * (node - 1), planes * shard * (size - node), 2)

    def hierarchical(self, nbytes: int, k: int, kd: int, node: int, nodes: int) -> float:
        """hierarchical vote."""
        slot, others = nbytes / node, (nodes - 1) / nodes
        up, down = k * node.bit_length(), kd
        local = 2 * self.local_latency + (k + kd) * slot * (node - 1) * self.local_per_byte
        remote = 2 * self.remote_latency + (up + down) * slot * others * self.remote_per_byte
        return local + remote

    def save(self, path: str | Path) -> None:
        """Writes the file that ``MPISIGN_COSTS`` names."""
        Path(path).write_text(json.dumps(asdict(self), indent=1) + "\n")


def measure_costs(wire: TaggedTransport, nodes: Sequence[Sequence[int]]) -> Steps[Costs]:
    """Measured, or read from the file of ``MPISIGN_COSTS``; the dearest of all ranks for each."""
    path = os.environ.get("MPISIGN_COSTS")
    if path:
        own = read(path)
    else:
        mine = next(node for node in nodes if wire.rank in node)
        local = [r for r in wire.transport.others() if r in mine]
        remote = [r for r in wire.transport.others() if r not in mine]
        numbers: list[float] = []
        for ranks in (local, remote):
            numbers += yield from _measure(wire, ranks)
        own = Costs(*numbers)
    rows = np.empty((wire.size, 32), dtype=np.uint8)
    yield wire.allgather(np.array(astuple(own), dtype="<f8").view(np.uint8), rows)
    return Costs(*rows.view("<f8").max(axis=0).tolist())


def read(path: str) -> Costs:
    """The costs in a file; ValueError if it holds none."""
    names = [f.name for f in fields(Costs)]
    try:
        data = json.loads(Path(path).read_text())
        numbers = [float(data[name]) for name in names]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"MPISIGN_COSTS: {path} must hold {', '.join(names)}: {error}") from None
    if not all(math.isfinite(n) and n >= 0 for n in numbers):
        raise ValueError(f"MPISIGN_COSTS: {path} must hold numbers from 0, got {numbers}")
    return Costs(*numbers)


def _measure(wire: TaggedTransport, ranks: Sequence[int]) -> Steps[tuple[float, float]]:
    """Latency and seconds a byte of exchanges with ``ranks``; the best of a few."""
    best = []
    for nbytes in (_SMALL, _LARGE):
        part = max(1, nbytes // max(1, wire.size - 1))  # the same for ranks of unlike nodes
        out, into = wire.empty(part), [wire.empty(part) for _ in ranks]
        out[...] = 0
        seconds = []
        for _ in range(_TIMES):
            yield wire.allgather(wire.empty(1), wire.empty(wire.size, 1))  # all start together
            start = time.perf_counter()
            yield wire.exchange([(r, out) for r in ranks], list(zip(ranks, into, strict=True)))
            seconds.append(time.perf_counter() - start)
        best.append(min(seconds))
    if not ranks:
        return 0.0, 0.0
    return best[0], max(0.0, best[1] - best[0]) / (part * len(ranks))
