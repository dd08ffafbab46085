"""A row of the table: a method by which ranks agree on a gradient, mpisign's or a peer's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mpisign.bench.collectives.gradient import Gradient, sign_sums
from mpisign.bench.collectives.traffic import Traffic
from mpisign.bench.errors import BenchError

_SHARE = 1e-2  # of the largest sum: fp16 has 11 bits


class WrongResultError(BenchError):
    """A method returned a wrong result."""


def nothing() -> None:
    """For methods that need no preparation."""


@dataclass(frozen=True)
class Running:
    """A method at one size. ``call``: gradient in, result out, all that is timed.

    ``prepare``: before every turn, not timed. ``check``: after one ``call``, raises
    WrongResultError; calls no collective unless all ranks do. ``result``: what must be equal, bit
    for bit, on all ranks, if anything.
    """

    call: Callable[[], Any]
    check: Callable[[], None]
    prepare: Callable[[], None] = nothing
    result: Callable[[], npt.NDArray[Any]] | None = None


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


def check_sum(gradient: Gradient, got: npt.NDArray[Any], exact: bool) -> None:
    """``got`` (d,): the sum over all ranks; ``exact``: of fp32, else of fp16."""
    rows = gradient.all_ranks
    expected = rows.sum(axis=0, dtype=np.float64)
    wrong = float(np.abs(got[: len(expected)] - expected).max())
    allowed = (1e-5 if exact else _SHARE) * max(1.0, float(np.abs(expected).max()))
    if not wrong <= allowed:
        raise WrongResultError(f"wrong: a sum is off by {wrong:.3g}")


def check_signs(gradient: Gradient, got: npt.NDArray[Any], groups: tuple[int, ...] = ()) -> None:
    """``got`` (d,): positive or negative as the majority of all ranks, wherever there is one.

    ``groups``: every rank's group, for a vote of votes: the majority of majorities, where a group
    that is tied abstains.
    """
    rows = gradient.all_ranks
    if groups:
        of = np.array(groups)
        votes = [np.sign(sign_sums(rows[of == group])) for group in sorted(set(groups))]
        sums = np.sum(votes, axis=0)
    else:
        sums = sign_sums(rows)
    part, decided = got[: len(sums)], sums != 0
    wrong = int((np.signbit(part[decided]) != (sums[decided] < 0)).sum())
    if wrong:
        raise WrongResultError(f"wrong: {wrong} signs are not the majority's")
    if not np.isfinite(part).all() or not part.all():
        raise WrongResultError("wrong: a zero, an infinity or a NaN")
