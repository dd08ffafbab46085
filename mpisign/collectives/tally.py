"""tally: how many ranks voted - and how many + at each coordinate, exact, on every rank."""

from __future__ import annotations

import math
import sys
from typing import Any, NamedTuple

import numpy as np

from mpisign import planes, policies
from mpisign.backend import arrays
from mpisign.collectives.count_task import Count, submit
from mpisign.collectives.vote_task import Planes
from mpisign.engine.engine import Engine
from mpisign.engine.progress import Handle

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
    return submit("tally", comm, settings, lambda engine: _Tally(x, out, eager, engine, settings))


class _Tally(Count):
    def __init__(self, x: Any, out: Any, eager: bool, engine: Engine, settings: Any) -> None:
        super().__init__("tally", x, eager, engine, settings)
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
        weights = self.task.weights
        # Kernels count in the smallest whole numbers of the weights' ratios.
        unit = 1 if weights is None else math.gcd(*(int(w) for w in weights))
        total = self.size if weights is None else int(sum(weights))
        bits = self.task.bits
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


def _int32_like(v: arrays.View) -> Any:
    if v.is_torch:
        torch = sys.modules["torch"]
        return torch.empty(v.shape, dtype=torch.int32)
    return np.empty(v.shape, dtype=np.int32)
