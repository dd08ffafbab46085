"""Measures what connects ranks: between those of this job, or over loopback without a job."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from statistics import median

import numpy as np

from mpisign.bench.collectives.via import Via
from mpisign.engine.dissemination import all_same
from mpisign.engine.engine import Engine
from mpisign.transports.base import Steps
from mpisign.transports.tagged import TaggedTransport, UncountedTransport

_SMALL, _LARGE = 64, 4 << 20  # bytes of a message: _LARGE is beyond what a switch passes at once
_CALLS, _ROUNDS = 25, 3


@dataclass(frozen=True)
class Wire:
    """What was measured: ``latency`` of an exchange, ``per_message`` of each further message of it.

    ``bandwidth``: bytes per second into each node while every rank sends to one other; within a
    node, into each rank. ``share``: of it that all reach when each exchanges with all others, as
    votes do. ``where``: between whom.
    """

    latency: float
    per_message: float
    bandwidth: float
    where: str
    share: float = 1.0


def measure_wire(engine: Engine, via: Via, far: bool) -> Wire | None:
    """Between the ranks of a job that are on other nodes (``far``), or on one. Collective.

    All ranks exchange at once; medians, of the slowest rank. Latency and the exchange of all with
    all are the transport's, as votes use it; the bandwidth is the library's own, as rings have it.

    Args:
        engine: a communicator's, over ``via``. Its nodes have equally many ranks.
        via: the library that connects the ranks.
        far: between nodes, else within each.

    Returns:
        Wire, or None if there are no two such ranks.

    Raises:
        CollectiveError: ranks were lost meanwhile.
    """
    size, own = engine.transport.size, engine.transport.rank
    nodes = engine.nodes or [list(range(size))]
    node = next(list(node) for node in nodes if own in node)
    peers = [r for r in range(size) if r != own and (r not in node) == far]
    if not peers:
        return None
    at, place = next((i, list(node).index(own)) for i, node in enumerate(nodes) if own in node)
    if far:  # with the rank at the same place of the next node and of the one before
        pair = [nodes[(at + 1) % len(nodes)][place]], [nodes[at - 1][place]]
    else:
        pair = [node[(place + 1) % len(node)]], [node[place - 1]]
    one, many, large = engine.submit("predict", partial(_exchanges, pair, peers)).wait()
    further = max(0.0, many - one) / (len(peers) - 1) if len(peers) > 1 else 0.0
    nodes_ = f"{len(nodes)} nodes" if far else "one node"
    bandwidth = _shifts(via, len(node) if far else 1)
    all_with_all = _LARGE * (len(node) if far else 1) / max(large - many, 1e-9)
    where = f"{size} ranks on {nodes_}, {via.library}"
    return Wire(one, further, bandwidth, where, min(1.0, all_with_all / bandwidth))


def _exchanges(
    pair: tuple[list[int], list[int]], peers: list[int], wire: TaggedTransport
) -> Steps[list[float]]:
    """Seconds of a small message to one rank, to all of ``peers``, and of ``_LARGE`` to all.

    ``pair``: to whom and from whom the first one goes.
    """
    wire = UncountedTransport(wire.transport, wire.tag)
    found = []
    for (to, source), nbytes, calls in (
        (pair, _SMALL, _CALLS),
        ((peers, peers), _SMALL, _CALLS),
        ((peers, peers), _LARGE // len(peers), _ROUNDS),
    ):
        out, samples = wire.empty(nbytes), []
        into = [wire.empty(nbytes) for _ in source]
        for _ in range(calls + 1):
            yield from all_same(wire, np.zeros(1, dtype=np.uint8))  # all start together
            start = time.perf_counter()
            recvs = list(zip(source, into, strict=True))
            yield wire.exchange([(r, out) for r in to], recvs, bulk=nbytes > _SMALL)
            samples.append(time.perf_counter() - start)
        found.append(median(samples[1:]))  # the first makes connections
    row = np.array(found, dtype="<f8").view(np.uint8)
    rows = np.empty((wire.size, row.size), dtype=np.uint8)
    yield wire.allgather(row, rows)
    return rows.view("<f8").max(axis=0).tolist()  # type: ignore[no-any-return]


def _shifts(via: Via, each: int) -> float:
    """Bytes per second into each node, while every rank sends to the one ``each`` places on."""
    send, received = (np.zeros(_LARGE, np.uint8) for _ in range(2))
    samples = []
    for _ in range(_ROUNDS + 1):
        via.barrier()
        start = time.perf_counter()
        via.shift(each, send, received)
        own = np.array([time.perf_counter() - start])
        samples.append(float(via.gather(own).max()))
    return each * _LARGE / median(samples[1:])


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
