"""A method by which ranks agree on a gradient, mpisign's or a peer's, and the gradient."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mpisign.bench.collectives import traffic
from mpisign.bench.collectives.traffic import Traffic
from mpisign.experiments.errors import SettingsError

Floats = npt.NDArray[np.float32]

#: The vote of so many coordinates from the first on is checked against NumPy.
CHECKED = 1 << 20
_RESNET50_BLOCKS = ((64, 3), (128, 4), (256, 6), (512, 3))  # width, blocks


@functools.cache
def resnet50() -> tuple[int, ...]:
    """Coordinates of each of ResNet-50's 161 parameters, 25,557,032 in all."""
    found = [64 * 3 * 7 * 7, 64, 64]
    before = 64
    for width, blocks in _RESNET50_BLOCKS:
        for block in range(blocks):
            found += [before * width, width, width, width * width * 9, width, width]
            found += [width * 4 * width, width * 4, width * 4]
            if block == 0:
                found += [before * width * 4, width * 4, width * 4]
            before = width * 4
    return (*found, before * 1000, 1000)


def cut(length: int, tensors: int | str) -> tuple[int, ...]:
    """Lengths of the tensors that ``length`` coordinates are cut into."""
    if tensors == "resnet50":
        parts = np.array(resnet50(), dtype=np.float64)
        ends = np.rint(np.cumsum(parts) / parts.sum() * length).astype(np.int64)
    else:
        ends = np.arange(1, int(tensors) + 1, dtype=np.int64) * length // int(tensors)
    lengths = np.diff(ends, prepend=0)
    return tuple(int(n) for n in lengths if n)


class Gradient:
    """``values`` (d,) float32, normal, no zero among them, of this rank's own.

    ``out`` (d,) float32 is where every method writes its result, one after another.
    """

    def __init__(self, length: int, lengths: Sequence[int], rank: int, size: int) -> None:
        self.length, self.rank, self.size = length, rank, size
        self.lengths = tuple(lengths)
        self.values = values_of(length, rank)
        self.out = np.empty_like(self.values)
        self._ends = tuple(itertools.accumulate(lengths))

    def cut(self, array: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        """The tensors of an array (d,), as views."""
        starts = (0, *self._ends[:-1])
        return [array[a:b] for a, b in zip(starts, self._ends, strict=True)]

    @functools.cached_property
    def all_ranks(self) -> Floats:
        """The first ``CHECKED`` coordinates of every rank's values: (size, n)."""
        n = min(self.length, CHECKED)
        return np.stack([values_of(n, rank) for rank in range(self.size)])

    def refill(self) -> None:
        """Copies the values to ``out``, for methods in place."""
        np.copyto(self.out, self.values)

    def forget(self) -> None:
        """Frees what only checks need."""
        self.__dict__.pop("all_ranks", None)


def values_of(length: int, rank: int) -> Floats:
    """The gradient of ``rank``: (length,), its first coordinates the same at any length."""
    values = np.random.default_rng(1000 + rank).standard_normal(length, dtype=np.float32)
    values[values == 0] = 1.0
    return values


def sign_sums(rows: Floats, weights: Sequence[int] | None = None) -> npt.NDArray[np.int64]:
    """Sum of signs over ``rows`` (p, n), each times its weight: (n,)."""
    total = np.zeros(rows.shape[1], dtype=np.int64)
    for row, weight in zip(rows, weights or [1] * len(rows), strict=True):
        total += np.where(row < 0, -weight, weight)
    return total


_SHARE = 1e-2  # of the largest sum: fp16 has 11 bits


class WrongResultError(SettingsError):
    """A method returned a wrong result."""


def nothing() -> None:
    """For methods that need no preparation, or hold nothing."""


@dataclass(frozen=True)
class Running:
    """A method at one size. ``call``: gradient in, result out, all that is timed.

    ``prepare``: before every turn, not timed. ``check``: after one ``call``, raises
    WrongResultError; calls no collective unless all ranks do. ``result``: what must be equal, bit
    for bit, on all ranks, if anything. ``end``: after the last turn, frees what it holds.
    """

    call: Callable[[], Any]
    check: Callable[[], None]
    prepare: Callable[[], None] = nothing
    result: Callable[[], npt.NDArray[Any]] | None = None
    end: Callable[[], None] = nothing


@dataclass(frozen=True)
class CollectiveMethod:
    """``start`` is called by all ranks in one order. If it raises, the row has the error.

    ``booked``: mpisign.stats counts its bytes; else ``traffic`` is what it must move. ``notes``:
    a paragraph below the table.
    """

    label: str
    kind: str
    traffic: Callable[[int, int, int, int], Traffic]
    start: Callable[[Gradient], Running]
    algorithm: str | None = None
    booked: bool = False
    notes: str = ""


def allreduces(
    fp32: Callable[[Gradient], Running], fp16: Callable[[Gradient], Running], notes: str = ""
) -> Iterator[CollectiveMethod]:
    """A library's own; ``notes``: on fp16."""
    yield CollectiveMethod("fp32 allreduce", "fp32", traffic.of_fp32, fp32)
    yield CollectiveMethod("fp16 allreduce", "fp16", traffic.of_fp16, fp16, notes=notes)


def summed(gradient: Gradient, call: Callable[[], Any], exact: bool, copied: bool) -> Running:
    """``call`` leaves the sum in ``gradient.out``; ``copied``: which holds the values before."""

    def check() -> None:
        check_sum(gradient, gradient.out, exact)

    return Running(call, check, gradient.refill if copied else nothing)


def check_sum(gradient: Gradient, got: npt.NDArray[Any], exact: bool) -> None:
    """``got`` (d,): the sum over all ranks; ``exact``: of fp32, else of fp16."""
    rows = gradient.all_ranks
    expected = rows.sum(axis=0, dtype=np.float64)
    wrong = float(np.abs(got[: len(expected)] - expected).max())
    allowed = (1e-5 if exact else _SHARE) * max(1.0, float(np.abs(expected).max()))
    if not wrong <= allowed:
        raise WrongResultError(f"wrong: a sum is off by {wrong:.3g}")


def check_signs(gradient: Gradient, got: npt.NDArray[Any]) -> None:
    """``got`` (d,): positive or negative as the majority of all ranks, wherever there is one."""
    sums = sign_sums(gradient.all_ranks)
    part = got[: len(sums)]
    check_decided(part, sums)
    if not np.isfinite(part).all() or not part.all():
        raise WrongResultError("wrong: a zero, an infinity or a NaN")


def check_decided(part: npt.NDArray[Any], sums: npt.NDArray[Any]) -> None:
    """``part`` (n,): of the sign of ``sums`` (n,), wherever that is not 0."""
    decided = sums != 0
    wrong = int((np.signbit(part[decided]) != (sums[decided] < 0)).sum())
    if wrong:
        raise WrongResultError(f"wrong: {wrong} signs are not the majority's")


def check_votes(
    got: npt.NDArray[Any], sums: npt.NDArray[Any], ties: Literal["positive", "random"]
) -> None:
    """``got`` (d,): +1 and -1, and what NumPy makes of ``sums`` (n,), of its first coordinates."""
    if not (np.abs(got) == 1).all():
        raise WrongResultError("wrong: something else than +1 and -1")
    part = got[: len(sums)]
    check_decided(part, sums)
    tied = int((part[sums == 0] < 0).sum())
    if ties == "positive" and tied:
        raise WrongResultError(f"wrong: {tied} ties are not positive")
