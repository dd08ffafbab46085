"""Which ranks form a group; the same on every rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from mpisign import policies

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
    """Groups of ranks for DETOX: p // r groups of p ranks.

    "spread" deals the ranks, node by node in random order, to the groups in turn, so members are on
    different nodes as long as no node has more ranks than there are groups. "packed" cuts the ranks
    in node order, so members are on one node. Where r does not divide p, p mod r groups have one
    rank more (several more where p // r < p mod r). A group of even size may tie and abstains then.
    Source: Rajput et al. 2019, DETOX (groups); Chen et al. 2018, DRACO (repetition).

    Args:
        size: Number of ranks p.
        redundancy: Ranks per group r, odd, at most p.
        placement: "spread", "packed", or a partition of the ranks, which is returned as it is.
        nodes: The ranks of each node. None: one node.
        seed: Seed of the random order of "spread".
        draw: Number of the draw, for "spread".

    Returns:
        The ranks of each group, ascending; the same on every rank.

    Raises:
        ValueError: Redundancy is even or above p, or placement is no partition of the ranks.

    Example:
        >>> assign(7, redundancy=3, placement="packed")
        ((0, 1, 2), (3, 4, 5, 6))
    """
    if not isinstance(placement, str):
        return _explicit(size, placement)
    number = policies.whole(redundancy, 1)
    if number is None or number % 2 == 0:
        raise ValueError(
            f"{_FUNCTION}: redundancy must be an odd number from 1, got {redundancy!r}"
        )
    redundancy = number
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
    """The partition that ``groups`` means: None, a redundancy, a ``Groups`` or a partition."""
    if groups is None:
        return None
    if isinstance(groups, int) or policies.whole(groups) is not None:
        return assign(size, groups, "spread", nodes)
    if not hasattr(groups, "members"):
        return _explicit(size, groups)
    if groups.size != size:
        raise ValueError(f"{_FUNCTION}: groups must be of {size} ranks, got those of {groups.size}")
    partition: Partition = groups.members
    return partition


def _explicit(size: int, placement: Sequence[Sequence[int]]) -> Partition:
    members = tuple(tuple(sorted(int(r) for r in group)) for group in placement)
    if not all(members) or sorted(r for group in members for r in group) != list(range(size)):
        raise ValueError(
            f"{_FUNCTION}: placement must have each of ranks 0 to {size - 1} in one group, "
            f"got {placement!r}"
        )
    return members
