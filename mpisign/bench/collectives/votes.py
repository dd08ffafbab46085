"""Votes: mpisign's by every algorithm, blocking and several in flight, and NumPy's packbits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from mpisign.bench.collectives import traffic
from mpisign.bench.collectives.method import (
    CHECKED,
    CollectiveMethod,
    Floats,
    Gradient,
    Running,
    WrongResultError,
    check_signs,
    sign_sums,
    values_of,
)
from mpisign.bench.collectives.nodes import Nodes
from mpisign.bench.collectives.via import Via
from mpisign.experiments.errors import SettingsError
from mpisign.partition import assign

_PIECES = 4  # of a gradient of one tensor, for the row of votes in flight
_PIECES_FROM = 100_000  # coordinates
#: Ranks of a group, and the row of votes in groups: where there are two groups of so many, or more.
GROUP = 3
IN_GROUPS = f"vote alltoall, DETOX {GROUP}"


class Votes:
    """The votes over one library. ``connect`` makes a communicator; collective, and may raise."""

    def __init__(self, connect: Callable[[], Any], nodes: Nodes) -> None:
        self._connect, self._nodes = connect, nodes
        self._comm: Any = None

    def methods(self, algorithms: Sequence[str]) -> Iterator[CollectiveMethod]:
        """A row an algorithm, and one with several votes in flight."""
        for algorithm in algorithms:
            label = f"vote {algorithm.replace('_', ' ')}".replace("vote vote", "vote")
            yield _method(label, algorithm, partial(self._blocking, algorithm))
            size = len(self._nodes.of)
            if algorithm == "alltoall" and size > GROUP and size % GROUP == 0:
                yield _method(
                    IN_GROUPS, algorithm, self._in_groups,
                    f"DETOX {GROUP}: groups of {GROUP} ranks, which have one gradient, vote "
                    "first, then the groups; every rank's distance to its group's vote is counted.",
                )  # fmt: skip
        if "auto" in algorithms:
            yield _method(
                "vote auto, async", "auto", self._in_flight,
                "async: majority_vote_async of every tensor (of "
                f"{_PIECES} pieces where there is one tensor), then all waits.",
            )  # fmt: skip

    def costs(self) -> Any:
        """mpisign.collectives.costs.Costs of this wire; SettingsError if none were measured."""
        costs = self.communicator().engine.costs
        if costs is None:
            raise SettingsError(f"--cost: nothing is measured between {len(self._nodes.of)} ranks")
        return costs

    def communicator(self) -> Any:
        """The communicator; collective where it is new."""
        if self._comm is None:
            self._comm = self._connect()
        return self._comm

    @contextmanager
    def _or_broken(self) -> Iterator[None]:
        try:
            yield
        except Exception:
            self._comm = None
            raise

    def _blocking(self, algorithm: str, gradient: Gradient) -> Running:
        comm = self.communicator()
        groups = self._nodes.of if algorithm == "vote_of_votes" else ()

        def vote(out: Floats, **policies: str) -> None:
            with self._or_broken():
                comm.majority_vote(gradient.values, algorithm=algorithm, out=out, **policies)

        def check() -> None:
            plain = np.empty_like(gradient.out)
            exact = not groups and gradient.length <= CHECKED
            if exact:
                vote(plain, zeros="positive", ties="positive")
            _check_vote(gradient, groups)
            expected = np.where(sign_sums(gradient.all_ranks) < 0, -1, 1)
            if exact and not np.array_equal(plain, expected):
                raise WrongResultError("wrong: not NumPy's vote with ties='positive'")

        return Running(lambda: vote(gradient.out), check, result=lambda: gradient.out)

    def _in_groups(self, gradient: Gradient) -> Running:
        comm = self.communicator()
        ranks, of = range(gradient.size), self._nodes.of
        blocks = [[r for r in ranks if of[r] == node] for node in range(self._nodes.count)]
        groups = assign(gradient.size, GROUP, "spread", blocks)
        heads = [group[0] for group in groups]
        mine = next(group[0] for group in groups if gradient.rank in group)
        values = values_of(gradient.length, mine)

        def call() -> None:
            with self._or_broken():
                comm.majority_vote(values, algorithm="alltoall", groups=groups, out=gradient.out)

        def check() -> None:
            sums = sign_sums(gradient.all_ranks[heads])
            got = gradient.out[: len(sums)]
            if (np.sign(got) != np.sign(sums))[sums != 0].any() or not (np.abs(got) == 1).all():
                raise WrongResultError("wrong: not the majority of the groups")

        return Running(call, check, result=lambda: gradient.out)

    def _in_flight(self, gradient: Gradient) -> Running:
        comm = self.communicator()
        values, out = (gradient.cut(a) for a in (gradient.values, gradient.out))
        if len(values) == 1 and gradient.length >= _PIECES_FROM:
            values, out = (np.array_split(a[0], _PIECES) for a in (values, out))

        def call() -> None:
            with self._or_broken():
                handles = [
                    comm.majority_vote_async(x, out=o) for x, o in zip(values, out, strict=True)
                ]
                for handle in handles:
                    handle.wait()

        return Running(call, lambda: _check_vote(gradient, ()), result=lambda: gradient.out)


def _method(label: str, algorithm: str, start: Any, notes: str = "") -> CollectiveMethod:
    move = traffic.VOTES[algorithm]
    return CollectiveMethod(label, "vote", move, start, algorithm, booked=True, notes=notes)


def _check_vote(gradient: Gradient, groups: tuple[int, ...]) -> None:
    if not (np.abs(gradient.out) == 1).all():
        raise WrongResultError("wrong: something else than +1 and -1")
    check_signs(gradient, gradient.out, groups)


def packbits(via: Via) -> CollectiveMethod:
    """The vote as one writes it with NumPy, over any library."""
    return CollectiveMethod(
        "packbits, NumPy", "packbits", traffic.of_alltoall, partial(_packbits, via), "alltoall"
    )


def _packbits(via: Via, gradient: Gradient) -> Running:
    p = via.size
    shard = -(-traffic.plane(gradient.length) // p)
    counter = np.uint8 if p <= 255 else np.uint16
    send = np.zeros(p * shard, dtype=np.uint8)
    rows = np.empty((p, shard), dtype=np.uint8)
    result = np.empty((p, shard), dtype=np.uint8)

    def call() -> None:
        plane = np.packbits(gradient.values < 0, bitorder="little")
        send[: len(plane)] = plane
        via.alltoall(send.reshape(p, shard), rows)
        count = np.unpackbits(rows, axis=1, bitorder="little").sum(axis=0, dtype=counter)
        via.allgather(np.packbits(count > p // 2, bitorder="little"), result)
        bits = np.unpackbits(result.reshape(-1), count=gradient.length, bitorder="little")
        np.multiply(bits, np.float32(-2), out=gradient.out)
        np.add(gradient.out, 1, out=gradient.out)

    return Running(call, lambda: check_signs(gradient, gradient.out), result=lambda: gradient.out)
