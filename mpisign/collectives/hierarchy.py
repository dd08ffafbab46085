"""Nodes, racks and so on: which ranks hold which part of a chunk at each level of a hierarchy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any

#: Partitions of the ranks, innermost first: the groups of each are unions of those before it.
Partitions = Sequence[Sequence[Sequence[int]]]
#: The ranks of each child of a group.
Children = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Level:
    """One rank's place in one exchange up and one exchange down.

    ``children``: the ranks of each child of this rank's group: ranks, or groups of the level below.
    ``parts``: a range of bytes is cut into so many, the children of the smallest group.
    ``place``: of this rank's child. ``peers``: the rank of each child that holds the same range as
    this one; none if this rank holds no range here.
    """

    children: Children
    parts: int
    place: int
    peers: tuple[int, ...]

    @property
    def owns(self) -> bool:
        """Whether this rank owns part ``place`` of the range, and holds that one level up."""
        return bool(self.peers) and self.place < self.parts

    @cached_property
    def others(self) -> list[int]:
        """The places of the other children."""
        return [i for i in range(len(self.peers)) if i != self.place]


class Hierarchy:
    """Ranks in groups, such as nodes, of groups, such as racks, up to the group of all ranks.

    Ranks that hold the same part of their groups' counts are peers. The s-th rank of each node
    holds slot s; of those, the one in the j-th node of each rack holds piece j of that slot; and so
    on. Every group has as many owners at a level as the smallest group there has children.

    Args:
        partitions: of the ranks, innermost level first, the groups of each unions of those of the
            level before.
    """

    def __init__(self, partitions: Partitions) -> None:
        self.partitions = partitions
        self.size = sum(map(len, partitions[0]))
        everyone = range(self.size)
        levels: Partitions = [[[r] for r in everyone], *partitions, [list(everyone)]]
        self._groups: Partitions = levels
        self._of = [_index(groups, self.size) for groups in levels]
        #: By level, then group: its children, numbers of groups of the level below.
        self._children: list[list[list[int]]] = []
        for at in range(1, len(levels)):
            children: list[list[int]] = [[] for _ in levels[at]]
            for number, group in enumerate(levels[at - 1]):
                children[self._of[at][group[0]]].append(number)
            self._children.append(children)
        #: By level: into how many parts a range is cut, the children of the smallest group.
        self.parts = [min(map(len, children)) for children in self._children]
        self._levels: dict[int, list[Level]] = {}
        self._below = {len(partitions): self}
        self._unlike: dict[int, list[Children]] = {}

    @property
    def depth(self) -> int:
        """Exchanges up, and as many down: the levels given and that of all ranks."""
        return len(self._children)

    @property
    def busiest(self) -> int:
        """The last owner in the largest groups: where all is even, no rank sends or gets more."""
        group = 0
        for at in range(self.depth - 1, -1, -1):
            owners = self._children[at][group][: self.parts[at]]
            group = max(owners, key=lambda child: (len(self._groups[at][child]), child))
        return group

    def mates(self, rank: int) -> Sequence[int]:
        """The ranks of a rank's node, itself among them."""
        return self.partitions[0][self._of[1][rank]]

    def groups_something(self, depth: int) -> bool:
        """Whether each of the ``depth`` innermost levels has groups of several, several of them."""
        return all(p > 1 for p in self.parts[:depth]) and len(self.partitions[depth - 1]) > 1

    def below(self, depth: int) -> Hierarchy:
        """The hierarchy of the ``depth`` innermost levels alone."""
        if depth not in self._below:
            self._below[depth] = Hierarchy(self.partitions[:depth])
        return self._below[depth]

    def groups(self, at: int) -> list[Children]:
        """The children of every group of a level."""
        of_level = self._children[at]
        return [tuple(tuple(self._groups[at][n]) for n in numbers) for numbers in of_level]

    def unlike(self, at: int) -> list[Children]:
        """``groups``, but only one of those whose children are equally large."""
        if at not in self._unlike:
            found = {tuple(map(len, children)): children for children in self.groups(at)}
            self._unlike[at] = list(found.values())
        return self._unlike[at]

    def levels(self, rank: int) -> list[Level]:
        """A rank's place at each level, the group of all ranks last."""
        if rank in self._levels:
            return self._levels[rank]
        found: list[Level] = []
        path: list[int] = []
        for at, children in enumerate(self._children):
            numbers = children[self._of[at + 1][rank]]
            place = numbers.index(self._of[at][rank])
            holds = not found or found[-1].owns
            peers = [self._holder(at, number, path) for number in numbers] if holds else []
            ranks = tuple(tuple(self._groups[at][number]) for number in numbers)
            found.append(Level(ranks, self.parts[at], place, tuple(peers)))
            path.append(place)
        self._levels[rank] = found
        return found

    def _holder(self, at: int, group: int, path: Sequence[int]) -> int:
        """The rank of a group of level ``at`` whose places in the levels below are ``path``."""
        for below in range(at - 1, -1, -1):
            group = self._children[below][group][path[below]]
        return group


@lru_cache(maxsize=16)
def hierarchy_of(partitions: tuple[Children, ...]) -> Hierarchy:
    """One for all ranks of this process: simulated ones, and communicators of the same ranks."""
    return Hierarchy(partitions)


def _index(groups: Sequence[Sequence[int]], size: int) -> list[int]:
    """The number of each rank's group."""
    found = [0] * size
    for number, group in enumerate(groups):
        for rank in group:
            found[rank] = number
    return found


def grouped(keys: Sequence[object]) -> Children:
    """Ranks with equal keys, in the order of the first rank of each group."""
    groups: dict[object, list[int]] = {}
    for rank, key in enumerate(keys):
        groups.setdefault(key, []).append(rank)
    return tuple(map(tuple, groups.values()))


def levels_of(function: str, nodes: Any, size: int) -> list[list[int]] | None:
    """``nodes`` as ``Communicator`` takes it: a list a level, innermost first; None for None.

    ValueError unless each has a number for each of ``size`` ranks and they are nested.
    """
    if nodes is None:
        return None
    several = len(nodes) > 0 and hasattr(nodes[0], "__len__")
    levels = [[int(n) for n in level] for level in (nodes if several else [nodes])]
    for at, numbers in enumerate(levels):
        if len(numbers) != size:
            where = f" at level {at}" if several else ""
            raise ValueError(
                f"{function}: nodes must be one for each of {size} ranks, got {len(numbers)}{where}"
            )
    for at, (inner, outer) in enumerate(pairwise(levels)):
        first: dict[int, int] = {}
        for rank, node in enumerate(inner):
            other = first.setdefault(node, rank)
            if outer[rank] != outer[other]:
                raise ValueError(
                    f"{function}: nodes must have groups of level {at + 1} that are unions of "
                    f"groups of level {at}, but ranks {other} and {rank} share only the latter"
                )
    return levels
