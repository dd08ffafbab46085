"""tally: how many ranks voted - and how many + at each coordinate, exact, on every rank."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from mpisign import arrays, planes, policies
from mpisign.collectives.ballot import Ballot, Planes
from mpisign.collectives.header import Header
from mpisign.collectives.line import Line
from mpisign.collectives.majority_vote import check_settings
from mpisign.collectives.progress import Handle
from mpisign.collectives.vote import Channel, small
from mpisign.communicator import channel_of
from mpisign.errors import CollectiveError, WireError
from mpisign.planes.weights import integer_weights
from mpisign.stats import stage
from mpisign.transports.base import Steps

_ALGORITHMS = ("auto", "allgather", "alltoall")
_MOST = (1 << 31) - 1  # int32
_CACHED = 1 << 16  # coordinates that are read together
_EXACT = 16  # count planes that fp32 adds up without rounding, with room to spare


class Tally(NamedTuple):
    """int32 arrays of x's shape: the weights, 1 by default, of the ranks that voted so."""

    negative: Any
    positive: Any


def tally(
    x: Any,
    comm: Any = None,
    *,
    algorithm: policies.Algorithm = "auto",
    zeros: policies.Zeros = policies.DEFAULT_ZEROS,
    nan: policies.Nan = policies.DEFAULT_NAN,
    weight: int = 1,
    seed: int = 0,
    step: int | None = None,
    out: tuple[Any, Any] | None = None,
) -> Tally:
    """How many ranks voted - and + at each coordinate of ``x``, the same on every rank.

    ``x``, ``comm``, zeros, nan, seed, step: as ``majority_vote`` takes them, ``x`` in host memory.
    ``weight``: what this rank counts for, a whole number from 0; all ranks' sum is below 2**31.
    Returns ``Tally(negative, positive)``, or ``out``, two C-contiguous int32 arrays of x's shape,
    NumPy arrays or torch tensors as ``x`` is. A coordinate that abstains counts in neither.

    algorithm "alltoall": owners of shards tally and send count planes to all: k B (1 - 1/p) bytes
    up and k n B (1 - 1/p) down per rank, n = ceil(log2(p + 1)) bits for a count, B = ceil(d / 8),
    k = 2 if coordinates may abstain, else 1; trusts the owners. "allgather": every rank tallies for
    itself, k B (p - 1). "auto" takes the one that moves less. Wire: as alltoall-vote and
    allgather-vote, with count planes of - (lowest bit first), then of +, in place of the result.
    Errors: as ``majority_vote``'s, the same on every rank.
    """
    settings = _settings(algorithm, zeros, nan, weight, seed, step)
    return _start(x, comm, out, False, settings).wait()  # type: ignore[no-any-return]


def tally_async(
    x: Any,
    comm: Any = None,
    *,
    algorithm: policies.Algorithm = "auto",
    zeros: policies.Zeros = policies.DEFAULT_ZEROS,
    nan: policies.Nan = policies.DEFAULT_NAN,
    weight: int = 1,
    seed: int = 0,
    step: int | None = None,
    out: tuple[Any, Any] | None = None,
) -> Handle:
    """``tally`` that returns at once with a handle, as ``majority_vote_async`` does."""
    return _start(x, comm, out, True, _settings(algorithm, zeros, nan, weight, seed, step))


def _settings(algorithm: Any, zeros: Any, nan: Any, weight: Any, seed: Any, step: Any) -> Any:
    return {
        "algorithm": algorithm,
        "zeros": zeros,
        "nan": nan,
        "weight": weight,
        "seed": seed,
        "step": step,
    }


def _start(x: Any, comm: Any, out: Any, eager: bool, settings: dict[str, Any]) -> Handle:
    return submit("tally", comm, settings, lambda channel: _Tally(x, out, eager, channel, settings))


def submit(function: str, comm: Any, settings: dict[str, Any], make: Any) -> Handle:
    """Starts the ``Count`` that ``make(channel)`` returns; what it raises, all ranks raise."""
    channel = channel_of(function, comm)
    number = channel.next_step()
    if settings["step"] is None:
        settings["step"] = number
    try:
        count = make(channel)
    except Exception as error:
        refusal = Header("tally").refusal(str(error).removeprefix(f"{function}: "))
        return channel.submit(function, lambda line: channel.headers(line, refusal, function))
    return channel.submit(
        function, lambda line: count.steps(channel, line, number), settings["step"]
    )


@dataclass(slots=True)
class CountBallot(Ballot):
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
        self, function: str, x: Any, eager: bool, channel: Channel, settings: dict[str, Any]
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
        rank, self.size = channel.transport.rank, channel.transport.size
        self._how = {k: settings[k] for k in ("zeros", "nan", "seed", "step")} | {"rank": rank}
        self._x, self._nans = x, 0
        self.result: Any = None
        self.header = Header("tally", dtype=v.dtype, length=v.length, **settings)
        self.ballot = CountBallot(
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
        if eager or not v.contiguous or len(self.ballot.chunks()) == 1:
            self._planes = np.empty((self.ballot.k, self.ballot.nbytes), dtype=np.uint8)
            self._pack(x, 0, self._planes)
            self.header = replace(self.header, nans=self._nans)
        else:
            self._x = x.reshape(-1)
            self.header = replace(self.header, late=True)

    def steps(self, channel: Channel, line: Line, number: int) -> Steps[Any]:
        inlined = small(self.ballot, self.header)
        own = self._planes if inlined else None
        agreed = yield from channel.headers(line, self.header, self.function, own)
        check_weights(self.function, agreed.weights)
        self.ballot = ballot = replace(self.ballot, weights=agreed.weights)
        if agreed.header.algorithm == "auto":
            # allgather's k B (p - 1) against alltoall's (k + kd) B (p - 1) / p
            name: Any = "allgather" if ballot.k * line.size <= ballot.k + ballot.kd else "alltoall"
            agreed = replace(agreed, header=replace(agreed.header, algorithm=name))
        yield from channel.vote(line, ballot, agreed, number, lambda: self._nans, inlined=inlined)
        return self.result

    def _unpack(self, part: slice, counts: Planes) -> None:
        """Reads the count planes (kd, b) of the coordinates ``part``."""
        raise NotImplementedError

    def _unpack_chunk(self, a: int, b: int, counts: Planes) -> None:
        with stage("unpack"):
            if b > a:
                self._unpack(slice(8 * a, min(8 * b, self.ballot.length)), counts)

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


class _Tally(Count):
    def __init__(self, x: Any, out: Any, eager: bool, channel: Channel, settings: Any) -> None:
        super().__init__("tally", x, eager, channel, settings)
        v = self.view
        if out is None:
            out = (_int32_like(v), _int32_like(v))
        if not isinstance(out, (tuple, list)) or len(out) != 2:
            raise TypeError(f"tally: out must be two arrays, got {type(out).__name__}")
        for o in (arrays.view("tally", "out", o, writable=True) for o in out):
            if o.dtype != "int32" or o.shape != v.shape or not o.contiguous or o.device != "cpu":
                raise ValueError(
                    f"tally: out must be C-contiguous int32 {v.shape}, got {o.dtype} {o.shape}"
                )
        self.result = Tally(*out)
        self._flat = [np.asarray(o).reshape(-1) for o in out]

    def _unpack(self, part: slice, counts: Planes) -> None:
        weights = self.ballot.weights
        # Kernels count in the smallest whole numbers of the weights' ratios.
        unit = 1 if weights is None else math.gcd(*(int(w) for w in weights))
        total = self.size if weights is None else int(sum(weights))
        bits = self.ballot.bits
        room = np.empty(min(part.stop - part.start, _CACHED), dtype=np.float32)
        for at in range(part.start, part.stop, _CACHED):
            end = min(at + _CACHED, part.stop)
            negative, positive = (flat[at:end] for flat in self._flat)
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


def check_weights(function: str, weights: Sequence[float] | None) -> None:
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


def _int32_like(v: arrays.View) -> Any:
    if v.is_torch:
        torch = sys.modules["torch"]
        return torch.empty(v.shape, dtype=torch.int32)
    return np.empty(v.shape, dtype=np.int32)
