"""``GroupSampler``: one sequence of indices per group."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any, Literal, get_args

import numpy as np
from torch.utils.data import Sampler

from mpisign import policies
from mpisign.detox.groups import Groups
from mpisign.robust.names import hint

Order = Literal["random", "flipflop"]

_FUNCTION = "GroupSampler"


class GroupSampler(Sampler[int]):
    """Indices into ``dataset`` for this rank's group, in place of DistributedSampler.

    Members of a group get the same sequence; different groups share no index, except the repeats of
    ``drop_last=False``. Call ``set_epoch`` before each epoch; it also sets the groups' epoch.
    ``state_dict`` counts the indices handed out, so a loader without workers resumes after its last
    batch. Workers fetch ahead: pass ``state_dict(used)`` then. Source: Rajput et al. 2019, DETOX;
    Rajput, Lee, Papailiopoulos 2021, Permutation-based SGD: is random optimal? (FlipFlop).

    Args:
        dataset: Anything with a length, at least one index per group.
        groups: The groups.
        shuffle: Draw a new order per epoch, else use that of the dataset.
        order: "random", or "flipflop": each odd epoch is the one before it backwards.
        seed: Seed of the order, the same on all ranks.
        drop_last: Leave out a remainder that does not give all groups as many indices; False:
            repeat the first indices instead.

    Raises:
        TypeError: ``groups`` is not a ``Groups``.
        ValueError: An argument is out of range.

    Example:
        >>> groups = Groups.of(size=6, rank=3, placement="packed")
        >>> list(GroupSampler(range(8), groups, shuffle=False))
        [1, 3, 5, 7]
    """

    def __init__(
        self,
        dataset: Sized,
        groups: Groups,
        *,
        shuffle: bool = True,
        order: Order = "random",
        seed: int = 0,
        drop_last: bool = True,
    ) -> None:
        if not isinstance(groups, Groups):
            raise TypeError(
                f"{_FUNCTION}: groups must be mpisign.detox.Groups, got {type(groups).__name__}"
            )
        if order not in get_args(Order):
            raise ValueError(
                f"{_FUNCTION}: order must be 'random' or 'flipflop', got {order!r}"
                + hint(order, get_args(Order))
            )
        if policies.whole(seed) is None:
            raise ValueError(f"{_FUNCTION}: seed must be a number from 0, got {seed!r}")
        if len(dataset) < len(groups):
            raise ValueError(
                f"{_FUNCTION}: dataset must have an index for each of {len(groups)} groups, "
                f"got {len(dataset)}"
            )
        self.dataset, self.groups = dataset, groups
        self.shuffle, self.order, self.seed, self.drop_last = shuffle, order, int(seed), drop_last
        self.epoch = 0
        self._given = 0  # indices of this epoch that were handed out
        self._resumes = False  # whether the next iterator starts after those
        self._turn = 0

    def __len__(self) -> int:
        """Indices per epoch, the same for every rank."""
        length, groups = len(self.dataset), len(self.groups)
        return length // groups if self.drop_last else -(-length // groups)

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next iterator and of the groups.

        Args:
            epoch: From 0, the same on all ranks.
        """
        self.groups.set_epoch(epoch)
        if epoch != self.epoch:
            self.epoch, self._given, self._resumes = int(epoch), 0, False
            self._turn += 1

    def __iter__(self) -> Iterator[int]:
        if not self._resumes:
            self._given = 0
        self._resumes = False
        self._turn += 1
        return self._hand_out(self._sequence()[self._given :], self._turn)

    def _hand_out(self, indices: list[int], turn: int) -> Iterator[int]:
        for i in indices:
            if turn == self._turn:  # an abandoned iterator no longer counts
                self._given += 1
            yield i

    def _sequence(self) -> list[int]:
        length, groups = len(self.dataset), len(self.groups)
        indices = np.arange(length)
        # Both epochs of a pair leave out, or repeat, the same indices.
        drawn = self.epoch // 2 if self.order == "flipflop" else self.epoch
        if self.shuffle:
            indices = np.random.default_rng([self.seed, drawn]).permutation(length)
        own = np.resize(indices, len(self) * groups)[self.groups.group :: groups]
        backwards = self.order == "flipflop" and self.epoch % 2
        return (own[::-1] if backwards else own).tolist()

    def state_dict(self, used: int | None = None) -> dict[str, Any]:
        """The position in this epoch, the same on all ranks.

        Args:
            used: Indices of this epoch that were trained on, where workers fetched more.

        Returns:
            A dict of plain values: the settings, ``epoch`` and ``given``, the indices used.

        Example:
            >>> sampler = GroupSampler(range(9), Groups.of(3, 0))
            >>> first, state = next(iter(sampler)), sampler.state_dict()
            >>> state["epoch"], state["given"]
            (0, 1)
        """
        given = self._given if used is None else used
        if not 0 <= given <= self._given:
            raise ValueError(
                f"{_FUNCTION}.state_dict: used must be from 0 to the {self._given} indices handed "
                f"out, got {used!r}"
            )
        return {**self._settings(), "epoch": self.epoch, "given": given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Makes the next iterator start at a saved position; ``set_epoch`` of its epoch keeps it.

        Args:
            state: The result of ``state_dict``. The groups' members may differ.

        Raises:
            ValueError: The state is of another dataset length, order, seed or number of groups;
                nothing is changed.
        """
        for name, own in self._settings().items():
            if state.get(name) != own:
                raise ValueError(
                    f"{_FUNCTION}.load_state_dict: expected {name}={own!r}, got {state.get(name)!r}"
                )
        epoch = policies.whole(state.get("epoch"))
        given = policies.whole(state.get("given"), 0, len(self) + 1)
        if epoch is None:
            raise ValueError(
                f"{_FUNCTION}.load_state_dict: expected an epoch, got {state.get('epoch')!r}"
            )
        if given is None:
            raise ValueError(
                f"{_FUNCTION}.load_state_dict: given must be from 0 to {len(self)}, "
                f"got {state.get('given')!r}"
            )
        self.groups.set_epoch(epoch)
        self.epoch, self._given, self._resumes = epoch, given, True
        self._turn += 1

    def _settings(self) -> dict[str, Any]:
        names = ("shuffle", "order", "seed", "drop_last")
        own = {name: getattr(self, name) for name in names}
        return {"length": len(self.dataset), "groups": len(self.groups), **own}
