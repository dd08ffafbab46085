"""Votes: mpisign's by function, by plan and several in flight, and NumPy's packbits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mpisign.bench.collectives import traffic
from mpisign.bench.collectives.method import (
    CollectiveMethod,
    Gradient,
    Running,
    check_signs,
    check_votes,
    sign_sums,
    values_of,
)
from mpisign.bench.collectives.nodes import Nodes
from mpisign.bench.collectives.via import Via
from mpisign.experiments.errors import SettingsError
from mpisign.partition import assign

Ties = Literal["positive", "random"]
Sums = npt.NDArray[np.int64]

_PIECES = 4  # of a gradient of one tensor, for the row of votes in flight
_PIECES_FROM = 100_000  # coordinates
#: Ranks of a group, and the row of votes in groups: where there are two groups of so many, or more.
GROUP = 3
IN_GROUPS = f"vote DETOX {GROUP}"
PLAN, WITHOUT_OUT, RANDOM = "vote plan", "vote without out=", "vote random ties"
WEIGHTED = "vote weighted"
_WEIGHTS = 3  # 1, 2, 3, 1, ... by rank


class Votes:
    """The votes over one library. ``connect`` makes a communicator; collective, and may raise.

    As the bare vote's, zeros and ties are positive, but for one row.
    """

    def __init__(self, connect: Callable[[], Any], nodes: Nodes) -> None:
        self._connect, self._nodes = connect, nodes
        self._comm: Any = None

    def methods(self, algorithms: Sequence[str]) -> Iterator[CollectiveMethod]:
        """A row an algorithm, and rows of other votes by the first of them or by "alltoall"."""
        first, size = algorithms[0], len(self._nodes.of)
        yield _method(
            PLAN, first, partial(self._by_plan, first),
            "Votes: comm.majority_vote(out=), zeros and ties positive; plan, without out=, random "
            f"ties (zeros too, as is the default) and async: algorithm={first!r}.",
        )  # fmt: skip
        for algorithm in algorithms:
            label = f"vote {algorithm.replace('_', ' ')}".replace("vote vote", "vote")
            yield _method(label, algorithm, partial(self._by_function, algorithm))
        yield _method(WITHOUT_OUT, first, partial(self._by_function, first, out=False))
        yield _method(RANDOM, first, partial(self._by_function, first, ties="random"))
        yield _method(
            "vote async", first, partial(self._in_flight, first),
            "async: majority_vote_async of every tensor (of "
            f"{_PIECES} pieces where there is one tensor), then all waits.",
        )  # fmt: skip
        if "alltoall" in algorithms:
            yield _method(
                WEIGHTED, "alltoall", self._weighted,
                f"weighted: alltoall, weights of 1 to {_WEIGHTS}, by turns of the ranks.",
            )  # fmt: skip
            if size > GROUP and size % GROUP == 0:
                yield _method(
                    IN_GROUPS, "alltoall", self._in_groups,
                    f"DETOX {GROUP}: alltoall; groups of {GROUP} ranks, which have one gradient, "
                    "vote first, then the groups; each rank's distance to its group's is counted.",
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

    def _by_plan(self, algorithm: str, gradient: Gradient) -> Running:
        comm = self.communicator()
        with self._or_broken():
            plan = comm.plan_majority_vote(
                gradient.values, algorithm=algorithm, zeros="positive", ties="positive"
            )

        def call() -> None:
            with self._or_broken():
                plan(gradient.values, out=gradient.out)

        sums = partial(_sums, gradient, self._blocks(algorithm))
        return _running(gradient, call, sums, end=plan.free)

    def _by_function(
        self, algorithm: str, gradient: Gradient, out: bool = True, ties: Ties = "positive"
    ) -> Running:
        comm = self.communicator()
        result = [gradient.out]
        options: dict[str, Any] = {"algorithm": algorithm, "zeros": ties, "ties": ties}
        if out:
            options["out"] = gradient.out

        def call() -> None:
            with self._or_broken():
                result[0] = comm.majority_vote(gradient.values, **options)

        def check() -> None:
            check_votes(result[0], _sums(gradient, self._blocks(algorithm)), ties)

        return Running(call, check, result=lambda: result[0])

    def _weighted(self, gradient: Gradient) -> Running:
        comm = self.communicator()
        weights = [1 + rank % _WEIGHTS for rank in range(gradient.size)]

        def call() -> None:
            with self._or_broken():
                comm.majority_vote(
                    gradient.values, algorithm="alltoall", weight=weights[gradient.rank],
                    zeros="positive", ties="positive", out=gradient.out,
                )  # fmt: skip

        return _running(gradient, call, lambda: sign_sums(gradient.all_ranks, weights))

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
                comm.majority_vote(
                    values, algorithm="alltoall", groups=groups, zeros="positive",
                    ties="positive", out=gradient.out,
                )  # fmt: skip

        return _running(gradient, call, lambda: sign_sums(gradient.all_ranks[heads]))

    def _in_flight(self, algorithm: str, gradient: Gradient) -> Running:
        comm = self.communicator()
        values, out = (gradient.cut(a) for a in (gradient.values, gradient.out))
        if len(values) == 1 and gradient.length >= _PIECES_FROM:
            values, out = (np.array_split(a[0], _PIECES) for a in (values, out))
        policies = {"algorithm": algorithm, "zeros": "positive", "ties": "positive"}

        def call() -> None:
            with self._or_broken():
                handles = [
                    comm.majority_vote_async(x, out=o, **policies)
                    for x, o in zip(values, out, strict=True)
                ]
                for handle in handles:
                    handle.wait()

        return _running(gradient, call, partial(_sums, gradient, self._blocks(algorithm)))

    def _blocks(self, algorithm: str) -> tuple[int, ...]:
        """Every rank's node, where the majorities of the nodes vote; else ()."""
        return self._nodes.of if algorithm == "vote_of_votes" else ()


def _sums(gradient: Gradient, blocks: tuple[int, ...]) -> Sums:
    """Whose signs are the vote: over all ranks, or over the majorities of ``blocks``."""
    rows = gradient.all_ranks
    if not blocks:
        return sign_sums(rows)
    of = np.array(blocks)
    each = [np.sign(sign_sums(rows[of == block])) for block in sorted(set(blocks))]
    return np.sum(each, axis=0, dtype=np.int64)


def _running(
    gradient: Gradient, call: Callable[[], Any], sums: Callable[[], Sums], **more: Any
) -> Running:
    """A vote into ``gradient.out`` whose ties are positive."""

    def check() -> None:
        check_votes(gradient.out, sums(), "positive")

    return Running(call, check, result=lambda: gradient.out, **more)


def _method(label: str, algorithm: str, start: Any, notes: str = "") -> CollectiveMethod:
    move = traffic.VOTES[algorithm]
    return CollectiveMethod(label, "vote", move, start, algorithm, booked=True, notes=notes)


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
