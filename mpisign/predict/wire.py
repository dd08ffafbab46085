"""Measures what connects ranks: between those of this job, or over loopback without a job."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from mpisign.engine.dissemination import all_same
from mpisign.engine.engine import Engine
from mpisign.transports.base import Steps
from mpisign.transports.tagged import TaggedTransport, UncountedTransport

_SMALL, _LARGE = 64, 4 << 20  # bytes of a message: _LARGE is beyond what a switch passes at once
_CALLS, _ROUNDS = 25, 3


@dataclass(frozen=True)
class Wire:
    """What was measured: ``latency`` of an exchange, ``per_message`` of each further message of it.

    ``bandwidth``: bytes per second into each node while all send; within a node, into each rank.
    ``where``: between whom.
    """

    latency: float
    per_message: float
    bandwidth: float
    where: str


def measure_wire(engine: Engine, far: bool, library: str) -> Wire | None:
    """Between the ranks of a job that are on other nodes (``far``), or on one. Collective.

    All ranks exchange at once; medians, of the slowest rank. Nodes have equally many ranks.

    Args:
        engine: a communicator's.
        far: between nodes, else within each.
        library: what connects the ranks, for the report.

    Returns:
        Wire, or None if there are no two such ranks.

    Raises:
        CollectiveError: ranks were lost meanwhile.
    """
    size, own = engine.transport.size, engine.transport.rank
    nodes = engine.nodes or [list(range(size))]
    mine = next(i for i, node in enumerate(nodes) if own in node)
    node = list(nodes[mine])
    place = node.index(own)
    if far:  # the rank at the same place of the next node, so that links are shared evenly
        next_one, before = nodes[(mine + 1) % len(nodes)][place], nodes[mine - 1][place]
        peers = [r for r in range(size) if r not in node]
    else:
        next_one, before = node[(place + 1) % len(node)], node[place - 1]
        peers = [r for r in node if r != own]
    if not peers:
        return None

    def steps(wire: TaggedTransport) -> Steps[list[float]]:
        wire = UncountedTransport(wire.transport, wire.tag)
        found = []
        plans: list[tuple[Sequence[int], Sequence[int], int]] = [
            ([next_one], [before], _SMALL),
            (peers, peers, _SMALL),
            ([next_one], [before], _LARGE),
        ]
        for to, source, nbytes in plans:
            out = wire.empty(nbytes)
            into = [wire.empty(nbytes) for _ in source]
            samples = []
            calls = _CALLS if nbytes == _SMALL else _ROUNDS
            for _ in range(calls + 1):
                yield from all_same(wire, np.zeros(1, dtype=np.uint8))  # all start together
                start = time.perf_counter()
                yield wire.exchange([(r, out) for r in to], list(zip(source, into, strict=True)))
                samples.append(time.perf_counter() - start)
            found.append(median(samples[1:]))  # the first makes connections
        row = np.array(found, dtype="<f8").view(np.uint8)
        rows = np.empty((wire.size, row.size), dtype=np.uint8)
        yield wire.allgather(row, rows)
        return rows.view("<f8").max(axis=0).tolist()  # type: ignore[no-any-return]

    one, many, large = engine.submit("predict", steps).wait()
    further = max(0.0, many - one) / (len(peers) - 1) if len(peers) > 1 else 0.0
    each = len(node) if far else 1
    nodes_ = f"{len(nodes)} nodes" if far else "one node"
    where = f"{size} ranks on {nodes_}, {library}"
    return Wire(one, further, each * _LARGE / max(large - one, 1e-9), where)


_CHILD = """\
import socket, sys
s = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
def read(n):
    while n:
        n -= len(s.recv(min(n, 1 << 20)))
while True:
    head = s.recv(8, socket.MSG_WAITALL)
    if len(head) < 8:
        break
    read(int.from_bytes(head, "little"))
    s.sendall(b"x")
"""


def measure_loopback() -> Wire:
    """TCP between this process and another on this machine: no network, no transport.

    Returns:
        Wire: half a round trip, and bytes per second one way.

    Raises:
        OSError: this machine has no loopback, or the other process does not start.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(30)
        port = str(server.getsockname()[1])
        child = subprocess.Popen([sys.executable, "-c", _CHILD, port])
        try:
            link, _ = server.accept()
            with link:
                link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                link.settimeout(30)
                return _measure_link(link)
        finally:
            child.kill()
            child.wait()


def _measure_link(link: socket.socket) -> Wire:
    def seconds(nbytes: int, messages: int, calls: int) -> float:
        text = (nbytes.to_bytes(8, "little") + bytes(nbytes)) if nbytes else bytes(8)
        samples = []
        for _ in range(calls + 1):
            start = time.perf_counter()
            for _ in range(messages):
                link.sendall(text)
            for _ in range(messages):
                link.recv(1)
            samples.append(time.perf_counter() - start)
        return median(samples[1:])

    one, four = seconds(_SMALL, 1, _CALLS), seconds(_SMALL, 4, _CALLS)
    large = seconds(_LARGE, 1, _ROUNDS)
    message = min(max(0.0, four - one) / 3, 0.9 * one / 2)
    where = "loopback TCP between two processes of this machine"
    return Wire(one / 2, message, _LARGE / max(large - one, 1e-9), where)
