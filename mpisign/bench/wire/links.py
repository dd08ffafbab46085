"""Latency and bandwidth of each wire, measured in the same run by plain messages."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np

from mpisign.bench.wire.nodes import Nodes
from mpisign.bench.wire.via import Via

_LARGE = 4 << 20  # bytes: more than netlab's bucket of 512 kB lets pass at once
_SMALL, _CALLS, _ROUNDS = 8, 20, 5


@dataclass(frozen=True)
class Link:
    """One wire. ``latency``: seconds of a message of 8 bytes to another node (rank, on one node).

    ``bandwidth``: bytes per second into each node (rank, on one node), while all send and receive
    at once: medians over the rounds, of the slowest rank.
    """

    via: str
    library: str
    latency: float
    bandwidth: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def measure(via: Via, nodes: Nodes) -> Link:
    """By rank + L after rank + L, L ranks a node, so that every message leaves its node."""
    ranks = nodes.ends[1]

    def round_(nbytes: int, calls: int) -> Callable[[], float]:
        send, received = np.zeros(nbytes, np.uint8), np.empty(nbytes, np.uint8)

        def once() -> float:
            via.barrier()
            start = time.perf_counter()
            for _ in range(calls):
                via.shift(ranks, send, received)
            seconds = (time.perf_counter() - start) / calls
            return float(via.gather(np.array([seconds])).max())

        return once

    small, large = round_(_SMALL, _CALLS), round_(_LARGE, 2)
    small(), large()  # connections are made by the first
    latency = median(small() for _ in range(_ROUNDS))
    seconds = median(large() for _ in range(_ROUNDS))
    return Link(via.name, via.library, latency, ranks * _LARGE / seconds)
