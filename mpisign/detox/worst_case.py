"""The placement of hostile ranks that DETOX fears most."""

from __future__ import annotations

from collections.abc import Sequence

from mpisign.detox.assignment import Partition, assign


def worst_case(size: int, redundancy: int, hostile: Sequence[int]) -> Partition:
    """A partition in which ``hostile`` ranks own as many groups as they can: for experiments.

    As many groups and of such sizes as ``assign`` makes them. As long as there are enough of them,
    floor(n / 2) + 1 hostile ranks are put to a group of n, small groups first; what is left of them
    is in one group more. ceil(r / 2) (floor(p / 2r) + 1) of them own the majority of p / r groups.

    Raises ValueError as ``assign`` does, and for ranks that there are not.
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
