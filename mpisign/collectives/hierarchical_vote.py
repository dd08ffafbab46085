"""Votes over nodes whose ranks share one network link: what crosses it is one tally a node."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from mpisign import planes
from mpisign.collectives.alltoall_vote import alltoall_vote
from mpisign.collectives.vote_task import VoteTask
from mpisign.engine.pipeline import DEPTH, pipelined, slots
from mpisign.planes.weights import integer_weights
from mpisign.stats import stage
from mpisign.transports.base import Pending, Steps
from mpisign.transports.tagged import TaggedTransport


def hierarchical_vote(
    wire: TaggedTransport, task: VoteTask, nodes: Sequence[Sequence[int]]
) -> Steps[None]:
    """The flat vote's result, bit for bit; b + kd planes cross each node's link, not 2 L planes.

    ``nodes``: the ranks of each. A chunk's bytes [a, b) are cut into S slots, S the number of ranks
    of the smallest node; the s-th rank of each node tallies slot s of its node. Wire, chunks
    overlapping: (1) ballots to the owners of slots in the node; (2) slots, cut into one piece a
    node, as count planes (``planes.tally``: bit_length(L) planes of negative votes, with masks as
    many again of positive ones) to the same slot's owner in the node that owns the piece; (3) the
    pieces' results (kd planes) back to that slot's owners; (4) slots' results to all
    ranks of the node. Received over a node's link: bit_length(L) B (1 - 1/nodes) up and
    kd B (1 - 1/nodes) down. Tolerates bad votes, not bad tallies. Weights whose sum is
    beyond 2^28 as integers go by ``alltoall_vote``, which decides alike.
    """
    between = _Counts(task, nodes, wire.size)
    if between.too_heavy:
        yield from alltoall_vote(wire, task)
    else:
        yield from _vote(wire, task, nodes, between)


def vote_of_votes(
    wire: TaggedTransport, task: VoteTask, nodes: Sequence[Sequence[int]]
) -> Steps[None]:
    """Each node's majority has one vote: NOT the majority of the ranks. Explicit only.

    A bias that is spread unevenly over nodes wins with few ranks, and persists (see
    ``hierarchical_vote`` for the exact one). A node that ties abstains. Wire as there, with one
    plane a node in (2) instead of counts, two (sign and mask) where a node can tie.
    """
    yield from _vote(wire, task, nodes, _Verdicts(task, nodes, wire.size))


class _Between(ABC):
    """What a node tells the others of its ranks' ballots, and how that is decided on."""

    def __init__(self, task: VoteTask, nodes: Sequence[Sequence[int]], size: int) -> None:
        self.task = task
        weights = [1] * size if task.weights is None else task.weights
        whole = integer_weights("vote", weights, size)
        self.weights = [[int(whole[r]) for r in node] for node in nodes]

    @abstractmethod
    def planes(self, node: int) -> int:
        """How many planes node ``node`` sends for a slot."""

    @abstractmethod
    def tell(self, node: int, stack: Any, first: int, out: Any) -> None:
        """The ballots (L, k, b) of a node's ranks from byte ``first``: (planes, b)."""

    @abstractmethod
    def decide(self, wire: TaggedTransport, told: list[Any], first: int, out: Any) -> None:
        """What the nodes told, (planes, b) each: the result's planes (kd, b)."""


class _Counts(_Between):
    @property
    def too_heavy(self) -> bool:
        """Whether the weights of the counts' bits could add up to more than the kernels count."""
        return sum(map(sum, self.weights)) > 1 << 28

    def _bits(self, node: int) -> tuple[int, int]:
        """Count planes of one sign, and the unit that they count in."""
        weights = self.weights[node]
        unit = int(np.gcd.reduce(weights)) or 1  # planes.tally divides its rows' weights by it
        return max(1, (sum(weights) // unit).bit_length()), unit

    def planes(self, node: int) -> int:
        return self.task.k * self._bits(node)[0]

    def tell(self, node: int, stack: Any, first: int, out: Any) -> None:
        b = stack.shape[2]
        if b == 0:
            return
        masked, bits = stack.shape[1] == 2, self._bits(node)[0]
        weights = self.weights[node]
        with stage("vote"):
            planes.tally(
                stack if masked else stack[:, 0],
                length=self.task.coordinates(first, first + b),
                weights=None if len(set(weights)) == 1 and weights[0] else weights,
                out=out.reshape(2, bits, b) if masked else out,
            )

    def decide(self, wire: TaggedTransport, told: list[Any], first: int, out: Any) -> None:
        b = out.shape[1]
        masked = self.task.k == 2
        total = sum(map(sum, self.weights))
        weights: list[int] = []
        rows = sum(len(t) for t in told) + (not masked)
        # A bit of a count is a row that votes with the weight of the bit.
        stack = wire.empty(rows, 2 if masked else 1, b)
        at = 0
        for node, counts in enumerate(told):
            bits, unit = self._bits(node)
            weights += [unit << j for j in range(bits)] * self.task.k
            if masked:
                stack[at : at + bits, 0] = 0xFF  # negative votes, then positive ones
                stack[at + bits : at + 2 * bits, 0] = 0
                stack[at : at + 2 * bits, 1] = counts
            else:
                stack[at : at + bits, 0] = counts
            at += len(counts)
        if not masked:
            # A 0 bit voted + with its weight, and counts can hold more than there are voters: a row
            # of - takes away the surplus. W - 2 N - (W - total) = total - 2 N.
            stack[at, 0] = 0xFF
            weights.append(sum(weights) - total)
        self.task.tally(stack, first, out, weights)


class _Verdicts(_Between):
    def planes(self, node: int) -> int:
        return 2 if self.task.k == 2 or len(self.weights[node]) % 2 == 0 or self._weighted else 1

    @property
    def _weighted(self) -> bool:
        return self.task.weights is not None

    def tell(self, node: int, stack: Any, first: int, out: Any) -> None:
        b = stack.shape[2]
        if b == 0:
            return
        with stage("vote"):
            planes.majority(
                stack if stack.shape[1] == 2 else stack[:, 0],
                length=self.task.coordinates(first, first + b),
                ties="zero" if len(out) == 2 else "positive",  # which cannot occur
                weights=self.weights[node] if self._weighted else None,
                out=out if len(out) == 2 else out[0],
            )

    def decide(self, wire: TaggedTransport, told: list[Any], first: int, out: Any) -> None:
        stack = wire.empty(len(told), 2, out.shape[1])
        for row, verdict in zip(stack, told, strict=True):
            row[0] = verdict[0]
            row[1] = verdict[1] if len(verdict) == 2 else 0xFF
        self.task.tally(stack, first, out, [1] * len(told))


def _vote(
    wire: TaggedTransport, task: VoteTask, nodes: Sequence[Sequence[int]], between: _Between
) -> Steps[None]:
    n_slots = min(map(len, nodes))
    chunks = task.chunks(wire.transport.message, n_slots)
    n = slots(len(chunks))
    widest = max(b - a for a, b in chunks)
    here = next(i for i, node in enumerate(nodes) if wire.rank in node)
    mates = list(nodes[here])
    place = mates.index(wire.rank)
    owns = place < n_slots
    peers = [node[place] for node in nodes] if owns else []  # of my slot, one a node
    local = [i for i, r in enumerate(mates) if r != wire.rank]
    remote = [i for i in range(len(nodes)) if i != here]
    slot_width = -(-widest // n_slots)
    piece_width = -(-slot_width // len(nodes))
    ballots = [wire.empty(task.k, widest) for _ in range(n)]
    # A result lives through two exchanges: its pieces', then its slots'.
    long = min(len(chunks), 2 * DEPTH + 1)
    results = [wire.empty(task.kd, widest) for _ in range(long)]
    stacks = [wire.empty(len(mates), task.k, slot_width) for _ in range(n if owns else 0)]
    tallies = [wire.empty(between.planes(here), slot_width) for _ in range(n if owns else 0)]
    told = [
        [wire.empty(between.planes(j), piece_width) for j in range(len(nodes))]
        for _ in range(n if owns else 0)
    ]

    def cut(i: int) -> tuple[list[slice], list[slice]]:
        """Slots of chunk i, and pieces of my slot, from the chunk's and the slot's first byte."""
        a, b = chunks[i]
        all_slots = _cut(b - a, n_slots)
        mine = all_slots[place] if owns else slice(0, 0)
        return all_slots, _cut(mine.stop - mine.start, len(nodes))

    def to_slots(i: int) -> Pending:
        a, b = chunks[i]
        in_chunk, _ = cut(i)
        own = ballots[i % n][:, : b - a]
        task.pack(a, b, own)
        sends = [(mates[m], plane[in_chunk[m]]) for m in local if m < n_slots for plane in own]
        recvs = []
        if owns:
            mine = in_chunk[place]
            stack = stacks[i % n][..., : mine.stop - mine.start]
            stack[place] = own[:, mine]
            recvs = [(mates[m], plane) for m in local for plane in stack[m]]
        return wire.exchange(sends, recvs)

    def to_nodes(i: int) -> Pending:
        if not owns:
            return wire.exchange([], [])
        in_chunk, pieces = cut(i)
        mine = in_chunk[place]
        first = chunks[i][0] + mine.start
        stack = stacks[i % n][..., : mine.stop - mine.start]
        task.check_padding(stack, first, mates)
        tally = tallies[i % n].reshape(-1)[: len(tallies[i % n]) * stack.shape[2]]
        tally = tally.reshape(len(tallies[i % n]), -1) if stack.shape[2] else tallies[i % n][:, :0]
        between.tell(here, stack, first, tally)
        width = pieces[here].stop - pieces[here].start
        into = [t[:, :width] for t in told[i % n]]
        into[here][...] = tally[:, pieces[here]]
        sends = [(peers[j], plane[pieces[j]]) for j in remote for plane in tally]
        return wire.exchange(sends, [(peers[j], plane) for j in remote for plane in into[j]])

    def from_nodes(i: int) -> Pending:
        if not owns:
            return wire.exchange([], [])
        (a, b), (in_chunk, pieces) = chunks[i], cut(i)
        slot = results[i % long][:, : b - a][:, in_chunk[place]]
        own = slot[:, pieces[here]]
        first = a + in_chunk[place].start + pieces[here].start
        if own.shape[1]:
            between.decide(wire, [t[:, : own.shape[1]] for t in told[i % n]], first, own)
        sends = [(peers[j], plane) for j in remote for plane in own]
        return wire.exchange(sends, [(peers[j], p[pieces[j]]) for j in remote for p in slot])

    def from_slots(i: int) -> Pending:
        (a, b), (in_chunk, _) = chunks[i], cut(i)
        result = results[i % long][:, : b - a]
        sends = []
        if owns:
            sends = [(mates[m], plane[in_chunk[place]]) for m in local for plane in result]
        recvs = [(mates[m], p[in_chunk[m]]) for m in local if m < n_slots for p in result]
        return wire.exchange(sends, recvs)

    def unpack(i: int) -> None:
        a, b = chunks[i]
        task.unpack(a, b, results[i % long][:, : b - a])

    yield from pipelined(len(chunks), to_slots, to_nodes, from_nodes, from_slots, unpack)


def _cut(nbytes: int, parts: int) -> list[slice]:
    return [slice(*s) for s in pairwise(nbytes * i // parts for i in range(parts + 1))]
