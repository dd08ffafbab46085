"""Which ranks share a node, bytes counted at each node's link, its latency and bandwidth."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from mpisign.bench.collectives.via import Via
from mpisign.experiments.errors import SettingsError

_COUNTERS = Path("/proc/net/dev")
_BITS = 8
_LARGE = 4 << 20  # bytes: more than netlab's bucket of 512 kB lets pass at once
_SMALL, _CALLS, _ROUNDS = 8, 20, 5


@dataclass(frozen=True)
class Nodes:
    """``of``: every rank's node, from 0 on in the order of the ranks.

    ``rate``: bytes per second of each node's link each way, where scripts/netlab limits it.
    ``interface``: the link in /proc/net/dev, as scripts/netlab sets it.
    """

    of: tuple[int, ...]
    rate: float | None = None
    interface: str | None = None

    @property
    def count(self) -> int:
        return max(self.of) + 1

    @property
    def most(self) -> int:
        """Ranks of the node that has most."""
        return max(self.of.count(node) for node in range(self.count))

    @property
    def ends(self) -> tuple[int, int]:
        """(ends of links, ranks behind each): on one node every rank is its own."""
        return (len(self.of), 1) if self.count == 1 else (self.count, self.most)

    def __str__(self) -> str:
        ranks = f"{len(self.of)} ranks"
        where = f"{ranks} on {'one node' if self.count == 1 else f'{self.count} nodes'}"
        return where if self.rate is None else f"{where}, links of {rate(self.rate)}"


def rate(bytes_per_second: float) -> str:
    """A link's rate with its unit."""
    bits = bytes_per_second * _BITS
    return f"{bits / 1e9:.3g} Gbit/s" if bits >= 1e9 else f"{bits / 1e6:.3g} Mbit/s"


def find(via: Via) -> Nodes:
    """Gathers the nodes of all ranks. Raises SettingsError for wrong variables of netlab."""
    node = os.environ.get("NETLAB_NODE") or socket.gethostname()
    names = via.gather_text(node)
    first = {name: i for i, name in enumerate(dict.fromkeys(names))}
    of = tuple(first[name] for name in names)
    if "NETLAB" not in os.environ:
        return Nodes(of)
    return via.agreed(lambda: _netlab(of))


def _netlab(of: tuple[int, ...]) -> Nodes:
    text = os.environ.get("NETLAB_RATE", "none")
    try:
        link = None if text == "none" else float(text) / _BITS
    except ValueError:
        raise SettingsError(f"NETLAB_RATE must be bits per second or none, got {text!r}") from None
    interface = os.environ.get("NETLAB_INTERFACE")
    nodes = Nodes(of, link, interface)
    if interface is not None:
        counted(interface)
    return nodes


def counted(interface: str) -> tuple[int, int]:
    """Bytes (sent, received) at an interface since it came up, headers included."""
    try:
        lines = _COUNTERS.read_text().splitlines()
    except OSError as error:
        raise SettingsError(f"{_COUNTERS}: {error.strerror}") from error
    for line in lines:
        device, _, counters = line.partition(":")
        if device.strip() == interface:
            fields = counters.split()
            return int(fields[8]), int(fields[0])
    raise SettingsError(f"NETLAB_INTERFACE={interface}: not in {_COUNTERS}")


def per_node(nodes: Nodes, values: np.ndarray) -> float:  # type: ignore[type-arg]
    """Mean over the nodes of ``values`` (p,), which ranks of one node read from one counter."""
    of = np.array(nodes.of)
    return float(np.mean([values[of == node].max() for node in range(nodes.count)]))


@dataclass(frozen=True)
class Link:
    """One library while one size was measured.

    ``latency``: seconds of a message of 8 bytes to another node (rank, on one node).
    ``bandwidth``: bytes per second into each node (rank, on one node), while all send and receive
    at once: medians over the rounds, of the slowest rank.
    """

    via: str
    library: str
    size: int
    latency: float
    bandwidth: float


class Probe:
    """Messages by rank + L after rank + L, L ranks a node, so that every one leaves its node."""

    def __init__(self, via: Via, nodes: Nodes) -> None:
        self.via = via
        self._ranks = nodes.ends[1]
        self._send, self._received = (np.zeros(_LARGE, np.uint8) for _ in range(2))
        self._seconds: list[float] = []
        for nbytes in (_SMALL, _LARGE):  # the first makes connections
            self._once(nbytes, 1)
        self._latency = median(self._once(_SMALL, _CALLS) for _ in range(_ROUNDS))

    def turn(self) -> None:
        """One sample of the bandwidth."""
        self._seconds.append(self._once(_LARGE, 1))

    def link(self, size: int) -> Link:
        """The result of the turns since the last call."""
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
