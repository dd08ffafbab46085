"""Ballots whose result is counts: what ``tally`` and ``mean_of_signs`` have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mpisign import planes, policies
from mpisign.backend import arrays
from mpisign.collectives.majority_vote import check_settings
from mpisign.collectives.vote_task import Planes, VoteTask
from mpisign.communicator import engine_of
from mpisign.engine.engine import Engine, small
from mpisign.engine.header import Header
from mpisign.engine.progress import Handle
from mpisign.errors import CollectiveError, WireError
from mpisign.planes.weights import integer_weights
from mpisign.stats import stage
from mpisign.transports.base import Steps
from mpisign.transports.tagged import TaggedTransport

_ALGORITHMS = ("auto", "allgather", "alltoall")
_MOST = (1 << 31) - 1  # int32


def submit(function: str, comm: Any, settings: dict[str, Any], make: Any) -> Handle:
    """Starts the ``Count`` that ``make(engine)`` returns; what it raises, all ranks raise."""
    engine = engine_of(function, comm)
    number = engine.next_step()
    if settings["step"] is None:
        settings["step"] = number
    try:
        count = make(engine)
    except Exception as error:
        refusal = Header("tally").refusal(str(error).removeprefix(f"{function}: "))
        return engine.submit(function, lambda wire: engine.headers(wire, refusal, function))
    return engine.submit(function, lambda wire: count.steps(engine, wire, number), settings["step"])


@dataclass(slots=True)
class CountTask(VoteTask):
    """A ballot whose result are count planes: of negative votes, then, if masked, of positive."""

    size: int = 1

    @property
    def bits(self) -> int:
        """Planes of one count."""
        w = self.weights
        total = self.size if w is None else int(integer_weights("tally", w, len(w)).sum())
        return max(1, total.bit_length())

    @property
    def kd(self) -> int:
        return self.k * self.bits

    def tally(self, stack: Any, first: int, out: Any, weights: Any = None) -> None:
        b = stack.shape[2]
        if b == 0:
            return
        with stage("vote"):
            counts = planes.tally(
                stack if self.k == 2 else stack[:, 0],
                length=self.coordinates(first, first + b),
                weights=self.weights if weights is None else weights,
            )
            out[...] = counts.reshape(out.shape)


class Count:
    """One call's arguments, checked; packed whole if ``eager`` or small.

    Subclasses set ``result`` and read the counts in ``_unpack``.
    """

    def __init__(
        self, function: str, x: Any, eager: bool, engine: Engine, settings: dict[str, Any]
    ) -> None:
        self.function = function
        self.view = v = arrays.view_floats(function, "x", x)
        check_settings(function, settings | {"ties": policies.DEFAULT_TIES, "byzantine_f": 0})
        policies.code(function, "algorithm", settings["algorithm"], _ALGORITHMS)
        weight = settings["weight"]
        if not isinstance(weight, (int, np.integer)) or weight > _MOST:
            raise ValueError(f"{function}: weight must be an integer in [0, 2**31), got {weight!r}")
        if v.device != "cpu":
            raise TypeError(f"{function}: x must be in host memory, got device {v.device}")
        rank, self.size = engine.transport.rank, engine.transport.size
        self._how = {k: settings[k] for k in ("zeros", "nan", "seed", "step")} | {"rank": rank}
        self._x, self._nans = x, 0
        self.result: Any = None
        self.header = Header("tally", dtype=v.dtype, length=v.length, **settings)
        self.task = CountTask(
            length=v.length,
            k=policies.planes_up(settings["zeros"], settings["nan"]),
            ties=policies.DEFAULT_TIES,
            seed=settings["seed"],
            step=settings["step"],
            pack=self._pack_chunk,
            unpack=self._unpack_chunk,
            size=self.size,
        )
        self._planes: Any = None
        if eager or not v.contiguous or self.task.short(engine.transport.message):
            self._planes = np.empty((self.task.k, self.task.nbytes), dtype=np.uint8)
            self._pack(x, 0, self._planes)
            self.header = replace(self.header, nans=self._nans)
        else:
            self._x = x.reshape(-1)
            self.header = replace(self.header, late=True)

    def steps(self, engine: Engine, wire: TaggedTransport, number: int) -> Steps[Any]:
        inlined = small(self.task, self.header, wire.size)
        own = self._planes if inlined else None
        agreed = yield from engine.headers(wire, self.header, self.function, own)
        _check_weights(self.function, agreed.weights)
        self.task = task = replace(self.task, weights=agreed.weights)
        if agreed.header.algorithm == "auto":
            # allgather's k B (p - 1) against alltoall's (k + kd) B (p - 1) / p
            name: Any = "allgather" if task.k * wire.size <= task.k + task.kd else "alltoall"
            agreed = replace(agreed, header=replace(agreed.header, algorithm=name))
        yield from engine.vote(wire, task, agreed, number, lambda: self._nans, inlined=inlined)
        return self.result

    def _unpack(self, part: slice, counts: Planes) -> None:
        """Reads the count planes (kd, b) of the coordinates ``part``."""
        raise NotImplementedError

    def _unpack_chunk(self, a: int, b: int, counts: Planes) -> None:
        with stage("unpack"):
            if b > a:
                self._unpack(slice(8 * a, min(8 * b, self.task.length)), counts)

    def _pack(self, x: Any, first: int, out: Planes) -> None:
        with stage("pack"):
            _, _, nans = planes.pack_census(
                x, **self._how, offset=8 * first, out=out if len(out) == 2 else out[0]
            )
        self._nans += int(nans)

    def _pack_chunk(self, a: int, b: int, out: Planes) -> None:
        if self._planes is not None:
            out[...] = self._planes[:, a:b]
        else:
            self._pack(self._x[8 * a : 8 * b], a, out)


def _check_weights(function: str, weights: Sequence[float] | None) -> None:
    """CollectiveError if they sum to more than int32 holds, WireError if one is not whole."""
    if weights is None:
        return
    for rank, w in enumerate(weights):
        if not float(w).is_integer():
            raise WireError(f"rank {rank} sent a weight of {w}, which is not whole")
    if sum(weights) > _MOST:
        raise CollectiveError(
            f"{function}: weights of all ranks must sum to less than 2**31, got {int(sum(weights))}"
        )
