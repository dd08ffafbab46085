"""The worst placement of hostile ranks for DETOX."""

from __future__ import annotations

from collections.abc import Sequence

from mpisign.partition import Partition, assign


def worst_case(size: int, redundancy: int, hostile: Sequence[int]) -> Partition:
    """A partition in which ``hostile`` ranks own as many groups as they can: for experiments.

    Group sizes are those of ``assign``. floor(n / 2) + 1 hostile ranks go to each group of n, small
    groups first, while they last; the rest join one more group. ceil(r / 2) (floor(p / 2r) + 1) of
    them own the majority of p / r groups. Raises ValueError as ``assign``, and for unknown ranks.

    Example:
        >>> worst_case(6, 3, [4, 5])
        ((0, 4, 5), (1, 2, 3))
    """
    sizes = sorted(len(group) for group in assign(size, redundancy, "packed"))
    bad = sorted(set(hostile))
    if len(bad) != len(hostile) or any(not 0 <= rank < size for rank in bad):
        raise ValueError(
            f"worst_case: hostile must be different ranks below {size}, got {list(hostile)!r}"
        )
    good = [rank for rank in range(size) if rank not in set(bad)]
    groups: list[list[int]] = []
    for n in sizes:
        take = min(n // 2 + 1, len(bad))
        groups.append([bad.pop(0) for _ in range(take)])
    pool = [*good, *bad]  # more hostile ranks than that own everything: the rest fills up
    for n, group in zip(sizes, groups, strict=True):
        while len(group) < n:
            group.append(pool.pop(0))
    return tuple(tuple(sorted(group)) for group in groups)
