"""Latency and bandwidth of each wire, by plain messages in turns with the ways."""

from __future__ import annotations

import time
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
    """One wire while one size was measured.

    ``latency``: seconds of a message of 8 bytes to another node (rank, on one node).
    ``bandwidth``: bytes per second into each node (rank, on one node), while all send and receive
    at once: medians over the rounds, of the slowest rank.
    """

    via: str
    library: str
    size: int
    latency: float
    bandwidth: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class Probe:
    """Messages by rank + L after rank + L, L ranks a node, so that every one leaves its node."""

    def __init__(self, via: Via, nodes: Nodes) -> None:
        self.via = via
        self._ranks = nodes.ends[1]
        self._send, self._received = (np.zeros(_LARGE, np.uint8) for _ in range(2))
        self._seconds: list[float] = []
        for nbytes in (_SMALL, _LARGE):  # connections are made by the first
            self._once(nbytes, 1)
        self._latency = median(self._once(_SMALL, _CALLS) for _ in range(_ROUNDS))

    def turn(self) -> None:
        """One sample of the bandwidth."""
        self._seconds.append(self._once(_LARGE, 1))

    def link(self, size: int) -> Link:
        """What the turns since the last call came to."""
        bandwidth = self._ranks * _LARGE / median(self._seconds)
        self._seconds = []
        return Link(self.via.name, self.via.library, size, self._latency, bandwidth)

    def _once(self, nbytes: int, calls: int) -> float:
        send, received = self._send[:nbytes], self._received[:nbytes]
        self.via.barrier()
        start = time.perf_counter()
        for _ in range(calls):
            self.via.shift(self._ranks, send, received)
        seconds = (time.perf_counter() - start) / calls
        return float(self.via.gather(np.array([seconds])).max())
