"""Votes over nodes whose ranks share one network link: what crosses it is one tally a node."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

from mpisign.collectives.alltoall_vote import alltoall_vote
from mpisign.collectives.group_counts import Counts, Told, Verdicts
from mpisign.collectives.hierarchy import Hierarchy
from mpisign.collectives.vote_task import VoteTask
from mpisign.engine.pipeline import DEPTH, pipelined, slots
from mpisign.planes.weights import integer_weights
from mpisign.transports.base import Pending, Steps
from mpisign.transports.tagged import TaggedTransport

#: Beyond this sum of weights the bits of counts could add up to more than the kernels count.
_HEAVY = 1 << 28


def hierarchical_vote(wire: TaggedTransport, task: VoteTask, hierarchy: Hierarchy) -> Steps[None]:
    """The flat vote's result, bit for bit; b + kd planes cross each node's link, not 2 L planes.

    ``hierarchy``: nodes, or nodes in racks, and so on. A chunk's bytes [a, b) are cut into S slots,
    S the number of ranks of the smallest node; the s-th rank of each node tallies slot s of its
    node. At the next level a slot is cut into as many pieces as the smallest rack has nodes (as
    there are nodes, if no racks are given); the ranks that hold slot s in the nodes of a rack each
    own a piece; and so on, up to the group of all ranks. Wire, chunks overlapping, from each level
    to the next: (1) ballots to the owners of slots in the node; (2) pieces of slots, as count
    planes (``planes.tally``: bit_length(L) planes of negative votes of a group of L ranks, with
    masks as many again of positive ones) to the owners in the rack, who add them up; (3) at the top
    the votes are decided; results (kd planes) go back, level by level, to the ranks that sent
    counts, and in the node to all. Received over a node's link, without racks: bit_length(L) B
    (1 - 1/nodes) up and kd B (1 - 1/nodes) down. Tolerates bad votes, not bad tallies. Weights
    whose sum is beyond 2^28 as integers go by ``alltoall_vote``, which decides alike.
    """
    weights = _whole(task, wire.size)
    if sum(weights) > _HEAVY:
        yield from alltoall_vote(wire, task)
    else:
        yield from _vote(wire, task, hierarchy, weights, Counts)


def vote_of_votes(wire: TaggedTransport, task: VoteTask, hierarchy: Hierarchy) -> Steps[None]:
    """Each node's majority has one vote: NOT the majority of the ranks. Explicit only.

    A bias that is spread unevenly over nodes wins with few ranks, and persists (see
    ``hierarchical_vote`` for the exact one). A node that ties abstains. Only the innermost level of
    ``hierarchy`` matters. Wire as there, with one plane a node in (2) instead of counts, two (sign
    and mask) where a node can tie.
    """
    weights = _whole(task, wire.size)
    yield from _vote(wire, task, hierarchy.below(1), weights, Verdicts)


def _whole(task: VoteTask, size: int) -> list[int]:
    """The ranks' weights, as the integers that kernels count."""
    if task.weights is None:
        return [1] * size
    whole: list[int] = integer_weights("vote", task.weights, size).tolist()
    return whole


def _vote(
    wire: TaggedTransport,
    task: VoteTask,
    hierarchy: Hierarchy,
    weights: Sequence[int],
    kind: type[Told],
) -> Steps[None]:
    levels = hierarchy.levels(wire.rank)
    top = len(levels) - 1
    slots_in_all = math.prod(hierarchy.parts[:-1])
    held = _memory(task, hierarchy, weights, kind)
    chunks = task.chunks(wire.transport.message, slots_in_all, held)
    n = slots(len(chunks))
    widths = _widths(max(b - a for a, b in chunks), hierarchy)
    ballots = [wire.empty(task.k, widths[0]) for _ in range(n)]
    # A result lives through the exchanges of all levels.
    long = min(len(chunks), len(levels) * DEPTH + 1)
    results = [wire.empty(task.kd, widths[0]) for _ in range(long)]
    groups = [kind(task, weights, e.children, at == 0, at == top) for at, e in enumerate(levels)]
    stacks: list[list[Any]] = []  # by level: what the children of this rank's group send
    tallies: list[list[Any]] = []  # by level: what that adds up to
    for group, level, width in zip(groups, levels, widths[1:], strict=True):
        copies = range(n if level.owns else 0)
        stacks.append([wire.empty(*group.rows, width) for _ in copies])
        tallies.append([wire.empty(group.made * width) for _ in copies if group.made])
        for stack in stacks[-1]:
            group.fill(stack)

    def ranges(i: int) -> list[tuple[int, int]]:
        """Which bytes of chunk i this rank holds at each level, and what it owns at the top."""
        a, b = chunks[i]
        found = [(0, b - a)]
        for level in levels:
            if not level.owns:
                break
            low, high = found[-1]
            begin, end = (
                (high - low) * part // level.parts for part in (level.place, level.place + 1)
            )
            found.append((low + begin, low + end))
        return found

    def up(at: int, i: int) -> Pending:
        level, (a, b), what = levels[at], chunks[i], "counts" if at else "ballots"
        if at == 0:
            planes = list(ballots[i % n][:, : b - a])
            task.pack(a, b, ballots[i % n][:, : b - a])
        elif level.peers:
            planes = told(at - 1, i)
        else:
            return wire.exchange([], [], what)
        held = ranges(i)
        cuts = _cut(held[at][1] - held[at][0], level.parts)
        sends = [
            (level.peers[c], plane[cuts[c]])
            for c in level.others
            if c < level.parts
            for plane in planes
        ]
        if not level.owns:
            return wire.exchange(sends, [], what)
        mine = cuts[level.place]
        into = groups[at].received(stacks[at][i % n][..., : mine.stop - mine.start])
        for plane, own in zip(planes, into[level.place], strict=True):
            own[...] = plane[mine]
        recvs = [(level.peers[c], p) for c in level.others for p in into[c]]
        return wire.exchange(sends, recvs, what)

    def told(at: int, i: int) -> list[Any]:
        """What this rank's group of a level tells the others of the part that this rank owns."""
        low, high = ranges(i)[at + 1]
        first = chunks[i][0] + low
        stack = stacks[at][i % n][..., : high - low]
        if at == 0:
            task.check_padding(stack, first, [r for (r,) in levels[0].children])
        made = groups[at].made
        out = tallies[at][i % n][: made * (high - low)].reshape(made, high - low)
        return groups[at].tell(stack, first, out)

    def down(at: int, i: int) -> Pending:
        level = levels[at]
        if not level.peers:
            return wire.exchange([], [], "results")
        held = ranges(i)
        low, high = held[at]
        cuts = [slice(low + c.start, low + c.stop) for c in _cut(high - low, level.parts)]
        result = results[i % long]
        sends = []
        if level.owns:
            own = result[:, cuts[level.place]]
            if at == top and own.shape[1]:
                stack = stacks[at][i % n][..., : own.shape[1]]
                groups[at].decide(stack, chunks[i][0] + held[-1][0], own)
            sends = [(level.peers[c], plane) for c in level.others for plane in own]
        recvs = [
            (level.peers[c], plane[cuts[c]])
            for c in level.others
            if c < level.parts
            for plane in result
        ]
        return wire.exchange(sends, recvs, "results")

    def unpack(i: int) -> None:
        a, b = chunks[i]
        task.unpack(a, b, results[i % long][:, : b - a])

    ups = [partial(up, at) for at in range(len(levels))]
    downs = [partial(down, at) for at in reversed(range(len(levels)))]
    yield from pipelined(len(chunks), *ups, *downs, unpack)


def _memory(
    task: VoteTask, hierarchy: Hierarchy, weights: Sequence[int], kind: type[Told]
) -> Callable[[int, int], int]:
    """What ``VoteTask.chunks`` asks for: bytes of the buffers of the rank that needs most."""
    depth = hierarchy.depth
    planes = []  # by level: of what children send and of what that adds up to
    for at in range(depth):
        alike = hierarchy.unlike(at) if task.weights is None else hierarchy.groups(at)
        groups = [kind(task, weights, c, at == 0, at == depth - 1) for c in alike]
        planes.append(max(math.prod(group.rows) + group.made for group in groups))

    def held(chunks: int, widest: int) -> int:
        n, long = slots(chunks), min(chunks, depth * DEPTH + 1)
        widths = _widths(widest, hierarchy)
        of_parts = sum(m * w for m, w in zip(planes, widths[1:], strict=True))
        return n * (task.k * widest + of_parts) + long * task.kd * widest

    return held


def _widths(widest: int, hierarchy: Hierarchy) -> list[int]:
    """Bytes that a rank holds at each level, and of what it owns at the top, at most."""
    widths = [widest]
    for parts in hierarchy.parts:
        widths.append(-(-widths[-1] // parts))
    return widths


def _cut(nbytes: int, parts: int) -> list[slice]:
    return [slice(*s) for s in pairwise(nbytes * i // parts for i in range(parts + 1))]
