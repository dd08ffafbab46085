"""``GroupSampler``: one sequence of indices for a group, others for the other groups."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sized
from typing import Any, Literal, get_args

import numpy as np
from torch.utils.data import Sampler

from mpisign.detox.groups import Groups

Order = Literal["random", "flipflop"]

_FUNCTION = "GroupSampler"


class GroupSampler(Sampler[int]):
    """This rank's indices into ``dataset``, those of its group: in place of DistributedSampler.

    A group's members get one sequence; those of different groups have no index in common, but for
    the repeats of ``drop_last=False``. Call ``set_epoch`` before each epoch, as there: it also sets
    the groups', which may draw new members then.

    ``dataset``: anything with a length. ``shuffle``: an order drawn in each epoch, else that of the
    data set. ``order``: "random", or "flipflop": every odd epoch goes through the epoch before it
    backwards. ``seed``: alike on all ranks. ``drop_last``: a remainder that does not give every
    group as many indices is left out in this epoch; False: the first ones come twice instead.

    ``state_dict`` counts the indices that were handed out, so that a loader without workers goes on
    after the batch that it gave last. Workers fetch ahead: tell ``state_dict(used)`` then.

    Raises ValueError for what does not fit, and for a data set shorter than there are groups.
    Source: Rajput et al. 2019, DETOX; Rajput, Lee, Papailiopoulos 2021, Permutation-based SGD: is
    random optimal? (FlipFlop).
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
            near = difflib.get_close_matches(str(order), get_args(Order), n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(
                f"{_FUNCTION}: order must be 'random' or 'flipflop', got {order!r}{hint}"
            )
        if not isinstance(seed, int) or seed < 0:
            raise ValueError(f"{_FUNCTION}: seed must be a number from 0, got {seed!r}")
        if len(dataset) < len(groups):
            raise ValueError(
                f"{_FUNCTION}: dataset must have an index for each of {len(groups)} groups, "
                f"got {len(dataset)}"
            )
        self.dataset, self.groups = dataset, groups
        self.shuffle, self.order, self.seed, self.drop_last = shuffle, order, seed, drop_last
        self.epoch = 0
        self._given = 0  # indices of this epoch that were handed out
        self._resumes = False  # whether the next iterator starts after those
        self._turn = 0

    def __len__(self) -> int:
        """Indices of a whole epoch, the same for every rank."""
        length, groups = len(self.dataset), len(self.groups)
        return length // groups if self.drop_last else -(-length // groups)

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next iterator is for. All ranks call it alike, before they make one."""
        self.groups.set_epoch(epoch)
        if epoch != self.epoch:
            self.epoch, self._given, self._resumes = epoch, 0, False
            self._turn += 1

    def __iter__(self) -> Iterator[int]:
        if not self._resumes:
            self._given = 0
        self._resumes = False
        self._turn += 1
        return self._hand_out(self._sequence()[self._given :], self._turn)

    def _hand_out(self, indices: list[int], turn: int) -> Iterator[int]:
        for i in indices:
            if turn == self._turn:  # an iterator that was left counts no more
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
        """Where this epoch stands: numbers and a word, the same on all ranks.

        ``used``: indices of this epoch that were trained on, where a loader with workers has
        fetched more than that.
        """
        given = self._given if used is None else used
        if not 0 <= given <= self._given:
            raise ValueError(
                f"{_FUNCTION}.state_dict: used must be from 0 to the {self._given} indices handed "
                f"out, got {used!r}"
            )
        return {**self._settings(), "epoch": self.epoch, "given": given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The next iterator goes on where the state's stood; ``set_epoch`` of its epoch keeps that.

        Raises ValueError, and changes nothing, if the state is another data set's, order's, seed's
        or number of groups'. Who is in which group may differ.
        """
        for name, own in self._settings().items():
            if state.get(name) != own:
                raise ValueError(
                    f"{_FUNCTION}.load_state_dict: expected {name}={own!r}, got {state.get(name)!r}"
                )
        epoch, given = state.get("epoch"), state.get("given")
        if not isinstance(epoch, int) or epoch < 0:
            raise ValueError(f"{_FUNCTION}.load_state_dict: expected an epoch, got {epoch!r}")
        if not isinstance(given, int) or not 0 <= given <= len(self):
            raise ValueError(
                f"{_FUNCTION}.load_state_dict: given must be from 0 to {len(self)}, got {given!r}"
            )
        self.groups.set_epoch(epoch)
        self.epoch, self._given, self._resumes = epoch, given, True
        self._turn += 1

    def _settings(self) -> dict[str, Any]:
        return {
            "length": len(self.dataset),
            "groups": len(self.groups),
            "shuffle": self.shuffle,
            "order": self.order,
            "seed": self.seed,
            "drop_last": self.drop_last,
        }
