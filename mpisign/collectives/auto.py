"""Which algorithm a vote takes: the caller's, or the cheapest by the measured costs.

A cost file, named by ``MPISIGN_COSTS``, holds the four numbers of ``Costs`` as JSON.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path

import numpy as np

from mpisign.collectives.allgather_vote import allgather_vote
from mpisign.collectives.alltoall_vote import alltoall_vote
from mpisign.collectives.hierarchical_vote import hierarchical_vote, vote_of_votes
from mpisign.collectives.hierarchy import Hierarchy, grouped
from mpisign.collectives.replicated_vote import replicated_vote
from mpisign.collectives.vote_task import VoteTask
from mpisign.engine.engine import Engine
from mpisign.engine.header import Header
from mpisign.errors import CollectiveError, DisagreementError
from mpisign.transports.base import Steps
from mpisign.transports.tagged import TaggedTransport, UncountedTransport

Algorithm = Callable[[TaggedTransport, VoteTask], Steps[None]]

_ALLGATHER_BYTES = 1 << 14  # where nothing is measured: below, latency costs more than bytes
_SMALL, _LARGE = 64, 1 << 19  # bytes that a rank sends in the two measured exchanges
_TIMES = 3
_NAME_NBYTES = 16
_GIVEN, _FOUND, _WRONG = b"g", b"f", b"w"


def choose(engine: Engine, size: int, task: VoteTask, header: Header) -> Algorithm:
    """The algorithm for an agreed header: agreed values decide alone, so all ranks take it.

    Raises CollectiveError if the engine does not know its nodes, or is too small for f.
    """
    operation, f = header.operation, header.byzantine_f
    if f and header.device != "cpu":
        raise CollectiveError(f"{operation}: byzantine_f needs arrays in host memory")
    name: str = header.algorithm
    if task.groups is not None and name not in ("auto", "allgather", "alltoall"):
        raise CollectiveError(
            f"{operation}: groups vote by algorithm='auto', 'allgather' or 'alltoall', got {name!r}"
        )
    if f:
        if name not in ("auto", "alltoall"):
            raise CollectiveError(
                f"{operation}: byzantine_f={f} needs algorithm='alltoall' or 'auto', got {name!r}"
            )
        if size < 2 * f + 1:
            raise CollectiveError(
                f"{operation}: byzantine_f={f} needs at least {2 * f + 1} ranks, got {size}"
            )
        return functools.partial(replicated_vote, f=f)
    if name == "auto":
        name = task.pick(size) or _cheapest(engine, size, task)
    if name == "allgather":
        return allgather_vote
    if name == "alltoall":
        return alltoall_vote
    if engine.nodes is None:
        raise CollectiveError(
            f"{operation}: algorithm={name!r} needs a Communicator, which finds nodes"
        )
    vote = hierarchical_vote if name == "hierarchical" else vote_of_votes
    return functools.partial(vote, hierarchy=engine.hierarchy)


def _cheapest(engine: Engine, size: int, task: VoteTask) -> str:
    k, kd, nbytes = task.k, task.kd, task.nbytes
    if size <= 2:
        return "allgather"  # which receives no more than alltoall, in one exchange
    if engine.costs is None or engine.nodes is None:
        return "allgather" if (size - 1) * k * nbytes <= _ALLGATHER_BYTES else "alltoall"
    # Every rank counts with the same node, or they would choose differently.
    costs, node = engine.costs, min(map(len, engine.nodes))
    seconds = {
        "allgather": costs.allgather(nbytes, k, node, size),
        "alltoall": costs.alltoall(nbytes, k, kd, node, size),
    }
    if node > 1 and len(engine.nodes) > 1 and task.groups is None:
        nodes = len(engine.nodes)
        seconds["hierarchical"] = costs.hierarchical(nbytes, k, kd, node, nodes)
    return min(seconds, key=seconds.__getitem__)


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
        """Seconds of ``depth`` exchanges in a row, of so many bytes in the node and out of it."""
        latency = max(self.local_latency, self.remote_latency)
        return depth * latency + local * self.local_per_byte + remote * self.remote_per_byte

    def allgather(self, nbytes: int, k: int, node: int, size: int) -> float:
        """allgather-vote of planes of ``nbytes``, ``node`` ranks of ``size`` in this one's node."""
        return self.exchange(k * nbytes * (node - 1), k * nbytes * (size - node))

    def alltoall(self, nbytes: int, k: int, kd: int, node: int, size: int) -> float:
        """alltoall-vote."""
        shard, planes = nbytes / size, k + kd
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


def survey(
    engine: Engine, given: Sequence[Sequence[int]] | None, wrong: Exception | None = None
) -> None:
    """Finds the nodes (see ``find_nodes``) and measures what exchanges cost. Collective.

    ``wrong``: the error of this rank, which the collective raises on all ranks instead.
    """

    def steps(wire: TaggedTransport) -> Steps[None]:
        wire = UncountedTransport(wire.transport, wire.tag)
        engine.hierarchy = Hierarchy((yield from find_nodes(wire, given, wrong)))
        if wire.size > 2 and engine.transport.measurable:
            engine.costs = yield from measure_costs(wire, engine.hierarchy.partitions[0])

    engine.submit("Communicator", steps).wait()


def measure_costs(wire: TaggedTransport, nodes: Sequence[Sequence[int]]) -> Steps[Costs]:
    """Measured, or read from the file of ``MPISIGN_COSTS``; the largest of all ranks for each."""
    path = os.environ.get("MPISIGN_COSTS")
    if path:
        own = read(path)
    else:
        mine = next(node for node in nodes if wire.rank in node)
        local = [r for r in wire.others if r in mine]
        remote = [r for r in wire.others if r not in mine]
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


def find_nodes(
    wire: TaggedTransport,
    given: Sequence[Sequence[int]] | None,
    wrong: Exception | None = None,
) -> Steps[list[list[list[int]]]]:
    """The ranks of each node, then of each rack and so on, agreed by all ranks.

    Groups are in the order of their first ranks. ``given``: by level, innermost first, a number for
    each rank's group, the same on all ranks; None: ranks whose host names are equal share a node.
    Wire: 16 bytes a rank, "g" or "f" and 15 of BLAKE2b over the lists (over a single one as it
    is), or the host name; "w" where an argument is wrong. DisagreementError if ranks were given
    different lists, or only some were. A rank raises its ``wrong`` once all ranks are here.
    """
    if wrong is not None:
        key = ""
    elif given is None:
        key = socket.gethostname()
    else:
        key = repr(list(given[0]) if len(given) == 1 else [list(level) for level in given])
    digest = hashlib.blake2b(key.encode(), digest_size=_NAME_NBYTES - 1).digest()
    kind = _WRONG if wrong is not None else _FOUND if given is None else _GIVEN
    word = kind + digest
    rows = np.empty((wire.size, _NAME_NBYTES), dtype=np.uint8)
    yield wire.allgather(np.frombuffer(word, dtype=np.uint8), rows)
    words = [row.tobytes() for row in rows]
    if wrong is not None:
        raise wrong
    broken = [r for r, w in enumerate(words) if w[:1] == _WRONG]
    if broken:  # these ranks send no more than a notice that says why
        yield wire.exchange([], [(r, wire.empty(1)) for r in broken])
    if any(w[:1] == _GIVEN for w in words):
        if len(set(words)) > 1:
            raise DisagreementError("Communicator: nodes must be the same list on all ranks")
        assert given is not None
        return [grouped(level) for level in given]
    return [grouped(words)]
