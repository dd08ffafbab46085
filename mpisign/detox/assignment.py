"""Which ranks form a group: the same answer on every rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

Partition = tuple[tuple[int, ...], ...]
Placement = Literal["spread", "packed"] | Sequence[Sequence[int]]

_FUNCTION = "Groups"


def assign(
    size: int,
    redundancy: int = 3,
    placement: Placement = "spread",
    nodes: Sequence[Sequence[int]] | None = None,
    seed: int = 0,
    draw: int = 0,
) -> Partition:
    """``size`` ranks p in q = p // r groups of ``redundancy`` r, odd; ranks of each, ascending.

    "spread": nodes in random order, each one's ranks in random order, dealt out to the groups one
    by one: members are on different nodes as long as no node holds more than q ranks. "packed": the
    ranks in the nodes' order, cut into groups: what members exchange stays in their node. A
    partition of the ranks, any groups: itself. Where r does not divide p, p mod r groups are one
    larger each (more than one where q < p mod r); a group of an even number may tie, and abstains
    then. ``nodes``: ranks of each node, default all in one. ``seed`` and ``draw`` decide what is
    random, for "spread" alone.

    Raises ValueError for an even redundancy, fewer ranks than that, and what is no partition.
    Source: Rajput et al. 2019, DETOX (groups); Chen et al. 2018, DRACO (repetition).
    """
    if not isinstance(placement, str):
        return _explicit(size, placement)
    odd = isinstance(redundancy, int) and not isinstance(redundancy, bool) and redundancy % 2
    if not odd or redundancy < 1:
        raise ValueError(
            f"{_FUNCTION}: redundancy must be an odd number from 1, got {redundancy!r}"
        )
    if redundancy > size:
        raise ValueError(f"{_FUNCTION}: redundancy={redundancy} needs as many ranks, got {size}")
    if placement not in ("spread", "packed"):
        raise ValueError(
            f"{_FUNCTION}: placement must be 'spread', 'packed' or a partition of the ranks, "
            f"got {placement!r}"
        )
    groups = size // redundancy
    blocks = [list(node) for node in nodes] if nodes is not None else [list(range(size))]
    if placement == "packed":
        order = [rank for node in blocks for rank in node]
        bounds = [size * g // groups for g in range(groups + 1)]
        parts = [order[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]
    else:
        rng = np.random.default_rng([seed, draw])
        shuffled = [blocks[i] for i in rng.permutation(len(blocks))]
        order = [node[i] for node in shuffled for i in rng.permutation(len(node))]
        parts = [order[g::groups] for g in range(groups)]
    return tuple(tuple(sorted(part)) for part in parts)


def partition_of(
    groups: Any, size: int, nodes: Sequence[Sequence[int]] | None = None
) -> Partition | None:
    """What a front end was given as ``groups``: None, a redundancy, a ``Groups``, a partition."""
    if groups is None:
        return None
    if isinstance(groups, int):
        return assign(size, groups, "spread", nodes)
    if not hasattr(groups, "members"):
        return _explicit(size, groups)
    if groups.size != size:
        raise ValueError(f"{_FUNCTION}: groups must be of {size} ranks, got those of {groups.size}")
    members: Partition = groups.members
    return members


def _explicit(size: int, placement: Sequence[Sequence[int]]) -> Partition:
    members = tuple(tuple(sorted(int(r) for r in group)) for group in placement)
    if not all(members) or sorted(r for group in members for r in group) != list(range(size)):
        raise ValueError(
            f"{_FUNCTION}: placement must have each of ranks 0 to {size - 1} in one group, "
            f"got {placement!r}"
        )
    return members
