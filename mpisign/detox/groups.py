"""``Groups``: which ranks compute the same, redrawn now and then."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mpisign import policies
from mpisign.functions import engine_of
from mpisign.partition import Partition, Placement, assign

_FUNCTION = "Groups"


class Groups:
    """The ranks of a communicator in groups of ``redundancy``: p // r groups, see ``assign``.

    After a redraw momenta restart at zero. Ranks compare ``repr``, which holds the groups and
    neither rank nor epoch. No communicator is kept, so copies and pickles work. Source: Rajput et
    al. 2019, DETOX.

    Args:
        comm: Anything ``mpisign.Communicator`` takes; its first use is collective.
        redundancy: Ranks per group, odd. The same on all ranks, like all that follow.
        placement: "spread" puts a group's members on different nodes, "packed" on one; or a
            partition of the ranks.
        reshuffle_every: Epochs after which "spread" draws new groups (see ``set_epoch``). None:
            never.
        seed: Seed of the draws, from 0.

    Raises:
        ValueError: As ``assign``, or an argument is out of range.
        TypeError: As ``Communicator``.

    Example:
        >>> groups = Groups.of(size=6, rank=4, placement="packed")
        >>> groups.members, groups.group
        (((0, 1, 2), (3, 4, 5)), 1)
    """

    def __init__(
        self,
        comm: Any = None,
        redundancy: int = 3,
        placement: Placement = "spread",
        *,
        reshuffle_every: int | None = None,
        seed: int = 0,
    ) -> None:
        engine = engine_of(_FUNCTION, comm)
        self.size, self.rank = engine.transport.size, engine.transport.rank
        self._start(redundancy, placement, reshuffle_every, seed, engine.nodes)

    @classmethod
    def of(
        cls,
        size: int,
        rank: int,
        redundancy: int = 3,
        placement: Placement = "spread",
        *,
        reshuffle_every: int | None = None,
        seed: int = 0,
        nodes: Sequence[Sequence[int]] | None = None,
    ) -> Groups:
        """``Groups`` without a communicator, for simulations.

        Args:
            size: The number of ranks.
            rank: The rank that the groups are made for.
            redundancy, placement, reshuffle_every, seed: As ``Groups``.
            nodes: The ranks of each node. None: one node.

        Returns:
            The ``Groups`` of that rank.

        Raises:
            ValueError: As ``Groups``.

        Example:
            >>> len(Groups.of(size=9, rank=0))
            3
        """
        if not 0 <= rank < size:
            raise ValueError(f"{_FUNCTION}.of: rank must be in [0, {size}), got {rank!r}")
        made = cls.__new__(cls)
        made.size, made.rank = size, rank
        made._start(redundancy, placement, reshuffle_every, seed, nodes)
        return made

    def _start(
        self, redundancy: int, placement: Placement, every: int | None, seed: int, nodes: Any
    ) -> None:
        if every is not None:
            if policies.whole(every, 1) is None:
                raise ValueError(
                    f"{_FUNCTION}: reshuffle_every must be a number of epochs from 1 or None, "
                    f"got {every!r}"
                )
            if placement != "spread":
                raise ValueError(
                    f"{_FUNCTION}: reshuffle_every needs placement='spread', which alone is drawn, "
                    f"got {placement!r}"
                )
        if policies.whole(seed) is None:
            raise ValueError(f"{_FUNCTION}: seed must be a number from 0, got {seed!r}")
        number = policies.whole(redundancy)
        self.redundancy = redundancy if number is None else number  # else ``assign`` refuses it
        self.placement = placement
        self.reshuffle_every, self.seed = None if every is None else int(every), int(seed)
        self._nodes = None if nodes is None else [list(node) for node in nodes]
        self._assign(draw=0)

    def _assign(self, draw: int) -> None:
        self._draw = draw
        self._members = assign(
            self.size, self.redundancy, self.placement, self._nodes, self.seed, draw
        )
        owner = {rank: g for g, group in enumerate(self._members) for rank in group}
        self._of = tuple(owner[rank] for rank in range(self.size))

    @property
    def members(self) -> Partition:
        """The ranks of each group, ascending."""
        return self._members

    @property
    def group(self) -> int:
        """The index of this rank's group in ``members``."""
        return self._of[self.rank]

    @property
    def draw(self) -> int:
        """Number of redraws so far."""
        return self._draw

    def group_of(self, rank: int) -> int:
        """Returns the index of a rank's group in ``members``.

        Args:
            rank: The rank; ValueError if there is no such rank.
        """
        if not 0 <= rank < self.size:
            raise ValueError(
                f"{_FUNCTION}.group_of: rank must be in [0, {self.size}), got {rank!r}"
            )
        return self._of[rank]

    def set_epoch(self, epoch: int) -> None:
        """Redraws the groups if the epoch needs it. Local; between two steps.

        Args:
            epoch: From 0, the same on all ranks.

        Example:
            >>> groups = Groups.of(9, 0, reshuffle_every=2)
            >>> groups.set_epoch(5)
            >>> groups.draw
            2
        """
        if policies.whole(epoch) is None:
            raise ValueError(f"{_FUNCTION}.set_epoch: epoch must be a number from 0, got {epoch!r}")
        draw = 0 if self.reshuffle_every is None else int(epoch) // self.reshuffle_every
        if draw != self._draw:
            self._assign(draw)

    def __len__(self) -> int:
        return len(self._members)

    def __repr__(self) -> str:
        listed = " | ".join(" ".join(map(str, group)) for group in self._members)
        return f"Groups(redundancy={self.redundancy}, draw={self._draw}, members={listed})"
