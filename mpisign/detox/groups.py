"""``Groups``: who computes the same as whom, drawn anew now and then."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mpisign.detox.assignment import Partition, Placement, assign

_FUNCTION = "Groups"


class Groups:
    """The ranks of ``comm`` in groups of ``redundancy``, odd: p // r groups, see ``assign``.

    ``comm``: whatever ``mpisign.Communicator`` takes; collective where that has not been used yet.
    Its nodes are those that ``placement`` knows: "spread" puts a group's members on different
    nodes, "packed" on one; or a partition of the ranks. ``reshuffle_every``: epochs after which
    "spread" draws other groups, None: never; ``set_epoch`` says which epoch it is, as a sampler's
    does. After a draw momenta start again from zero. All arguments are to be alike on all ranks;
    ranks compare ``repr``, which tells the groups and neither rank nor epoch.

    Holds no communicator: copies and pickles are as good as the original.
    Raises ValueError, TypeError as ``assign`` and ``Communicator`` do.
    Source: Rajput et al. 2019, DETOX.
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
        from mpisign.functions import engine_of

        engine = engine_of(_FUNCTION, comm)
        transport = engine.transport
        nodes = engine.nodes
        self._start(
            transport.size, transport.rank, redundancy, placement, reshuffle_every, seed, nodes
        )

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
        """Rank ``rank``'s groups of ``size`` ranks that nothing connects, for simulations."""
        if not 0 <= rank < size:
            raise ValueError(f"{_FUNCTION}.of: rank must be in [0, {size}), got {rank!r}")
        made = cls.__new__(cls)
        made._start(size, rank, redundancy, placement, reshuffle_every, seed, nodes)
        return made

    def _start(
        self,
        size: int,
        rank: int,
        redundancy: int,
        placement: Placement,
        every: int | None,
        seed: int,
        nodes: Sequence[Sequence[int]] | None,
    ) -> None:
        if every is not None:
            if not isinstance(every, int) or every < 1:
                raise ValueError(
                    f"{_FUNCTION}: reshuffle_every must be a number of epochs from 1 or None, "
                    f"got {every!r}"
                )
            if placement != "spread":
                raise ValueError(
                    f"{_FUNCTION}: reshuffle_every needs placement='spread', which alone is drawn, "
                    f"got {placement!r}"
                )
        if not isinstance(seed, int) or seed < 0:
            raise ValueError(f"{_FUNCTION}: seed must be a number from 0, got {seed!r}")
        self.size, self.rank, self.redundancy = size, rank, redundancy
        self.placement, self.reshuffle_every, self.seed = placement, every, seed
        self._nodes = None if nodes is None else [list(node) for node in nodes]
        self._draw = 0
        self._deal()

    def _deal(self) -> None:
        self._members = assign(
            self.size, self.redundancy, self.placement, self._nodes, self.seed, self._draw
        )
        owner = {rank: g for g, group in enumerate(self._members) for rank in group}
        self._of = tuple(owner[rank] for rank in range(self.size))

    @property
    def members(self) -> Partition:
        """The ranks of each group in this draw, ascending in each."""
        return self._members

    @property
    def group(self) -> int:
        """The number of this rank's group in ``members``."""
        return self._of[self.rank]

    @property
    def draw(self) -> int:
        """How many draws came before this one."""
        return self._draw

    def group_of(self, rank: int) -> int:
        """The number of ``rank``'s group in ``members``; ValueError if there is no such rank."""
        if not 0 <= rank < self.size:
            raise ValueError(
                f"{_FUNCTION}.group_of: rank must be in [0, {self.size}), got {rank!r}"
            )
        return self._of[rank]

    def set_epoch(self, epoch: int) -> None:
        """The groups of ``epoch``, from 0. Local; all ranks call it alike, between two steps."""
        if not isinstance(epoch, int) or epoch < 0:
            raise ValueError(f"{_FUNCTION}.set_epoch: epoch must be a number from 0, got {epoch!r}")
        draw = 0 if self.reshuffle_every is None else epoch // self.reshuffle_every
        if draw != self._draw:
            self._draw = draw
            self._deal()

    def __len__(self) -> int:
        return len(self._members)

    def __repr__(self) -> str:
        listed = " | ".join(" ".join(map(str, group)) for group in self._members)
        return f"Groups(redundancy={self.redundancy}, draw={self._draw}, members={listed})"
