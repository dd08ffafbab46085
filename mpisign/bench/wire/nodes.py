"""Which ranks share a node, and what the kernel counts at each node's link."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpisign.bench.errors import BenchError
from mpisign.bench.wire.via import Via

_COUNTERS = Path("/proc/net/dev")
_BITS = 8


@dataclass(frozen=True)
class Nodes:
    """``of``: every rank's node, from 0 on in the order of the ranks.

    ``rate``: bytes per second of each node's link each way, where scripts/netlab limits it.
    ``interface``: the link in /proc/net/dev, where scripts/netlab tells it.
    """

    of: tuple[int, ...]
    rate: float | None = None
    interface: str | None = None

    @property
    def count(self) -> int:
        """Nodes."""
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
        if self.count == 1:
            where = f"{ranks} on one node"
        else:
            where = f"{ranks} on {self.count} nodes"
        return where if self.rate is None else f"{where}, links of {rate(self.rate)}"


def rate(bytes_per_second: float) -> str:
    """A link's rate as people write it."""
    bits = bytes_per_second * _BITS
    return f"{bits / 1e9:.3g} Gbit/s" if bits >= 1e9 else f"{bits / 1e6:.3g} Mbit/s"


def find(via: Via) -> Nodes:
    """Asks all ranks. Raises BenchError if netlab's variables make no sense."""
    node = os.environ.get("NETLAB_NODE") or socket.gethostname()
    names = via.tell(node)
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
        raise BenchError(f"NETLAB_RATE must be bits per second or none, got {text!r}") from None
    interface = os.environ.get("NETLAB_INTERFACE")
    nodes = Nodes(of, link, interface)
    if interface is not None:
        counted(interface)
    return nodes


def counted(interface: str) -> tuple[int, int]:
    """Bytes (sent, received) at an interface since it came up, headers included.

    Raises BenchError if the kernel does not tell.
    """
    try:
        lines = _COUNTERS.read_text().splitlines()
    except OSError as error:
        raise BenchError(f"{_COUNTERS}: {error.strerror}") from error
    for line in lines:
        device, _, counters = line.partition(":")
        if device.strip() == interface:
            fields = counters.split()
            return int(fields[8]), int(fields[0])
    raise BenchError(f"NETLAB_INTERFACE={interface}: not in {_COUNTERS}")


def per_node(nodes: Nodes, values: np.ndarray) -> float:  # type: ignore[type-arg]
    """Mean over the nodes of ``values`` (p,), which ranks of one node read from one counter."""
    of = np.array(nodes.of)
    return float(np.mean([values[of == node].max() for node in range(nodes.count)]))
