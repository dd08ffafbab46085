"""tally and mean_of_signs: exact counts of the ranks' signs at each coordinate, on every rank."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from mpisign import planes, policies
from mpisign.backend import arrays
from mpisign.collectives.majority_vote import ArrayCall, check_options
from mpisign.collectives.vote_task import ArrayTask, Planes, VoteTask
from mpisign.engine.agreement import Agreed
from mpisign.engine.engine import Engine
from mpisign.engine.handle import Handle
from mpisign.errors import CollectiveError, WireError
from mpisign.planes.weights import integer_weights

_ALGORITHMS = ("auto", "allgather", "alltoall")
_MOST = (1 << 31) - 1  # int32
_CACHED = 1 << 16  # coordinates that are read together
_EXACT = 16  # count planes that fp32 adds up without rounding, with room to spare


class Tally(NamedTuple):
    """How many ranks voted - and + at each coordinate; with weights, the sums of their weights.

    Attributes:
        negative: int32 array of x's shape and framework.
        positive: The same, of the votes for +.

    Example:
        >>> import numpy as np, mpisign
        >>> mpisign.Tally(np.array([3]), np.array([1])).positive.tolist()
        [1]
    """

    negative: Any
    positive: Any


class CountTask(VoteTask):
    """A task whose result is count planes: of negative votes, then, with masks, of positive."""

    size = 1
    bits = 1

    def agree(self, weights: Sequence[float] | None, size: int) -> None:
        self.weights, self.size = weights, size
        total = size
        if weights is not None:
            total = int(integer_weights("tally", weights, len(weights)).sum())
            self.size = int(sum(weights))  # the voters, of 1 each and of 0
        self.bits = max(1, total.bit_length())
        self.kd = self.k * self.bits

    def pick(self, size: int) -> str:
        """For algorithm="auto": allgather moves k B (p - 1), alltoall (k + kd) B (p - 1) / p."""
        return "allgather" if self.k * size <= self.k + self.kd else "alltoall"

    def count(self, stack: Any, length: int, first: int, out: Any, weights: Any) -> None:
        rows = stack if self.k == 2 else stack[:, 0]
        out[...] = planes.tally(rows, length=length, weights=weights).reshape(out.shape)

    def mean(self, counts: Planes, out: Any) -> None:
        """The mean of ``size`` signs from their count planes (kd, b), into float32 ``out``."""
        length = len(out)
        if self.k == 1:
            planes.mean_of_counts(counts, self.size, length=length, out=out)
            return
        # A plane's 0 adds its weight and its 1 takes it away: what is left is + minus -.
        bit = 2.0 ** np.arange(-1, self.bits - 1)
        planes.weighted_sum(counts, np.concatenate([bit, -bit]), length=length, out=out)
        out *= float(np.float32(1 / self.size))


class _ArrayCounts(CountTask, ArrayTask):
    """Counts of one array. ``out(task, coordinates, counts)`` reads them."""

    operation: ClassVar[str] = "tally"

    def write(self, a: int, b: int, result: Planes) -> None:
        if b > a:
            self._out(self, slice(8 * a, min(8 * b, self.length)), result)


class _ArrayMeans(_ArrayCounts):
    """Their own operation: a rank that counts and one that takes the mean have made a mistake."""

    operation: ClassVar[str] = "mean_of_signs"


def start_tally(engine: Engine, x: Any, out: Any, whole: bool, **options: Any) -> Handle:
    """Starts ``Communicator.tally``; ``whole``: packs ``x`` before this returns."""

    def prepare(v: arrays.View) -> tuple[Any, Any]:
        result = (_int32_like(v), _int32_like(v)) if out is None else out
        if not isinstance(result, (tuple, list)) or len(result) != 2:
            raise TypeError(f"tally: out must be two arrays, got {type(result).__name__}")
        for o in (arrays.view("tally", "out", o, writable=True) for o in result):
            _check_out("tally", o, "int32", v)
        flat = [np.asarray(o).reshape(-1) for o in result]
        return Tally(*result), lambda task, at, counts: _unpack_tally(task, at, counts, flat)

    return _start("tally", engine, x, whole, prepare, options)


def start_mean_of_signs(engine: Engine, x: Any, out: Any, **options: Any) -> Handle:
    """Starts ``Communicator.mean_of_signs``."""

    def prepare(v: arrays.View) -> tuple[Any, Any]:
        result = arrays.empty(v.shape, "float32", like=v) if out is None else out
        o = arrays.view_floats("mean_of_signs", "out", result, writable=True)
        _check_out("mean_of_signs", o, "float32", v)
        flat = np.asarray(result).reshape(-1)
        return result, lambda task, at, counts: task.mean(counts, flat[at])

    return _start("mean_of_signs", engine, x, False, prepare, {**options, "weight": 1})


def _start(
    function: str,
    engine: Engine,
    x: Any,
    whole: bool,
    prepare: Callable[[arrays.View], tuple[Any, Any]],
    options: dict[str, Any],
) -> Handle:
    """``prepare(view of x)``: the result, and what unpacks counts into it."""

    def make(number: int, step: int) -> Any:
        options["step"] = step
        v = arrays.view_floats(function, "x", x)
        check_options(function, **options, algorithms=_ALGORITHMS)
        weight = options["weight"]
        if policies.whole(weight, 0, _MOST + 1) is None:
            raise ValueError(f"{function}: weight must be an integer in [0, 2**31), got {weight!r}")
        if v.device != "cpu":
            raise TypeError(f"{function}: x must be in host memory, got device {v.device}")
        result, unpack_counts = prepare(v)
        kind = _ArrayCounts if function == "tally" else _ArrayMeans
        call = ArrayCall(engine, function, kind, v, unpack_counts, options)
        outs = result if isinstance(result, tuple) else (result,)
        apart = (arrays.view(function, "out", o) for o in outs)
        call.whole = whole or any(arrays.overlap_partly(v, o) for o in apart)
        call.check = _check_weights
        if call.whole:
            call.prepare()
        return functools.partial(call.steps, number, result)

    return engine.start(function, function, options["step"], make)


def _check_weights(agreed: Agreed) -> None:
    """CollectiveError if they sum to more than int32 holds, WireError if one is not whole."""
    function, weights = agreed.function, agreed.weights
    if weights is None:
        return
    for rank, w in enumerate(weights):
        if not float(w).is_integer():
            raise WireError(f"rank {rank} sent a weight of {w}, which is not whole")
    if sum(weights) > _MOST:
        raise CollectiveError(
            f"{function}: weights of all ranks must sum to less than 2**31, got {int(sum(weights))}"
        )


def _check_out(function: str, o: arrays.View, dtype: str, v: arrays.View) -> None:
    if o.dtype != dtype or o.shape != v.shape or not o.contiguous or o.device != "cpu":
        raise ValueError(
            f"{function}: out must be C-contiguous {dtype} {v.shape}, got {o.dtype} {o.shape}"
        )


def _unpack_tally(task: CountTask, part: slice, counts: Planes, flat: list[Any]) -> None:
    weights = task.weights
    # Kernels count in the smallest whole numbers of the weights' ratios.
    unit = 1 if weights is None else math.gcd(*(int(w) for w in weights))
    total = task.size if weights is None else int(sum(weights))
    bits = task.bits
    room = np.empty(min(part.stop - part.start, _CACHED), dtype=np.float32)
    for at in range(part.start, part.stop, _CACHED):
        end = min(at + _CACHED, part.stop)
        negative, positive = (array[at:end] for array in flat)
        piece = counts[:, (at - part.start) // 8 : (end - part.start + 7) // 8]
        _read(piece[:bits], unit, negative, room)
        if len(counts) > bits:
            _read(piece[bits:], unit, positive, room)
        else:
            np.subtract(total, negative, out=positive)


def _read(counts: Planes, unit: int, out: Any, room: Any) -> None:
    """``unit`` times the counts in planes (n, b), into int32 ``out``; ``room``: as many float32."""
    left = room[: out.size]
    for low in range(0, len(counts), _EXACT):
        some = counts[low : low + _EXACT]
        n = len(some)
        # A plane's 0 adds its weight and its 1 takes it away: 2^n - 1 - 2 c.
        planes.weighted_sum(some, 2.0 ** np.arange(n), length=out.size, out=left)
        np.subtract((1 << n) - 1, left, out=left)
        left *= 0.5
        if low == 0:
            out[...] = left
            if unit != 1:
                out *= np.int32(unit)
        else:
            out += left.astype(np.int32) * np.int32(unit << low)


def _int32_like(v: arrays.View) -> Any:
    if v.is_torch:
        torch = sys.modules["torch"]
        return torch.empty(v.shape, dtype=torch.int32)
    return np.empty(v.shape, dtype=np.int32)
