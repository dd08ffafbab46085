"""Which algorithm a vote takes: the caller's, or the cheapest by the measured costs."""

from __future__ import annotations

import functools
import hashlib
import socket
from collections.abc import Sequence

import numpy as np

from mpisign.collectives.allgather_vote import allgather_vote
from mpisign.collectives.alltoall_vote import alltoall_vote
from mpisign.collectives.costs import Costs, measure_costs
from mpisign.collectives.dry_run import Algorithm, DryRun, dry_run
from mpisign.collectives.environment import check_environment
from mpisign.collectives.hierarchical_vote import hierarchical_vote, vote_of_votes
from mpisign.collectives.hierarchy import Children, Hierarchy, grouped, hierarchy_of
from mpisign.collectives.replicated_vote import replicated_vote
from mpisign.collectives.vote_task import VoteTask
from mpisign.engine.engine import Engine
from mpisign.engine.header import Header
from mpisign.engine.waiting import find_sharing
from mpisign.errors import CollectiveError, DisagreementError
from mpisign.transports.base import Steps
from mpisign.transports.tagged import TaggedTransport, UncountedTransport

_ALLGATHER_BYTES = 1 << 14  # where nothing is measured: below, latency costs more than bytes
_NAME_NBYTES = 16
_FLAT: dict[str, Algorithm] = {"allgather": allgather_vote, "alltoall": alltoall_vote}
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
        return _auto(engine, size, task)
    if name in _FLAT:
        return _FLAT[name]
    if engine.hierarchy is None:
        raise CollectiveError(
            f"{operation}: algorithm={name!r} needs a Communicator, which finds nodes"
        )
    return named(name, len(engine.hierarchy.partitions), engine.hierarchy)


def named(name: str, depth: int, hierarchy: Hierarchy) -> Algorithm:
    """The algorithm of a name; with nodes and so on, over the ``depth`` innermost levels."""
    if name in _FLAT:
        return _FLAT[name]
    vote = hierarchical_vote if name == "hierarchical" else vote_of_votes
    return functools.partial(vote, hierarchy=hierarchy.below(depth))


def _auto(engine: Engine, size: int, task: VoteTask) -> Algorithm:
    name = task.pick(size)
    if name is None and size <= 2:
        name = "allgather"  # which receives no more than alltoall, in one exchange
    costs, transport = engine.costs, engine.transport
    if task.like is not None:  # the wire for device memory is another, and costs something else
        costs, transport = engine.device_costs, engine.device_transport or transport
    if name is None and (costs is None or engine.hierarchy is None):
        few = (size - 1) * task.k * task.nbytes <= _ALLGATHER_BYTES
        name = "allgather" if few else "alltoall"
    if name is not None:
        return _FLAT[name]
    levels = 0 if task.groups is not None else len(engine.hierarchy.partitions)
    shape = task.length, task.k, task.kd, transport.message
    return named(*cheapest(costs, engine.hierarchy, levels, *shape), engine.hierarchy)


@functools.lru_cache(maxsize=1024)
def cheapest(
    costs: Costs, hierarchy: Hierarchy, levels: int, length: int, k: int, kd: int, message: int
) -> tuple[str, int]:
    """The cheapest of ``candidates`` for the busiest rank, and of how many of the levels."""
    runs = candidates(hierarchy, levels, length, k, kd, message)
    return min(runs, key=lambda choice: costs.seconds(runs[choice]))


def candidates(
    hierarchy: Hierarchy, levels: int, length: int, k: int, kd: int, message: int
) -> dict[tuple[str, int], DryRun]:
    """What the busiest rank sends by each algorithm that "auto" may take.

    By name and, for "hierarchical", how many of the ``levels`` innermost levels it has; those where
    a level groups nothing are left out. The same on every rank, as all take the same one.
    """
    rank, size = hierarchy.busiest, hierarchy.size
    near = frozenset(hierarchy.mates(rank))
    depths = [depth for depth in range(1, levels + 1) if hierarchy.groups_something(depth)]
    shape = length, k, kd, rank, size, message, near
    return {
        (name, depth): dry_run(named(name, depth, hierarchy), *shape, memory=False)
        for name, depth in [*((name, 0) for name in _FLAT), *(("hierarchical", d) for d in depths)]
    }


def survey(
    engine: Engine, given: Sequence[Sequence[int]] | None, wrong: Exception | None = None
) -> None:
    """Finds the nodes (see ``find_nodes``) and measures what exchanges cost. Collective.

    ``wrong``: the error of this rank, which the collective raises on all ranks instead.
    """

    def steps(wire: TaggedTransport) -> Steps[None]:
        wire = UncountedTransport(wire.transport, wire.tag)
        engine.hierarchy = hierarchy_of((yield from find_nodes(wire, given, wrong)))
        yield from check_environment(wire)
        engine.progress.shares_cores = yield from find_sharing(wire)
        if wire.size > 2 and engine.transport.measurable:
            engine.costs = yield from measure_costs(wire, engine.hierarchy.partitions[0])

    engine.submit("Communicator", steps).wait()


def survey_devices(engine: Engine, wire: TaggedTransport) -> Steps[None]:
    """Measures what exchanges of device memory cost, by ``Engine.wire_for``'s wire; once.

    Collective. Nothing where ``survey`` has measured nothing.
    """
    if engine.device_costs is None and engine.costs is not None and wire.transport.measurable:
        uncounted = UncountedTransport(wire.transport, wire.tag, wire.like)
        nodes = engine.hierarchy.partitions[0]
        engine.device_costs = yield from measure_costs(uncounted, nodes)


def find_nodes(
    wire: TaggedTransport,
    given: Sequence[Sequence[int]] | None,
    wrong: Exception | None = None,
) -> Steps[tuple[Children, ...]]:
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
        return tuple(map(grouped, given))
    return (grouped(words),)
