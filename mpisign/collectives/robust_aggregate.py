"""robust_aggregate: a robust rule on one vector a rank, of which no rank holds all."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from mpisign.backend import arrays
from mpisign.collectives.majority_vote import check_settings
from mpisign.collectives.robust_shards import Flags, Reduction, Shards
from mpisign.communicator import engine_of
from mpisign.engine.agreement import refuse_nans
from mpisign.engine.engine import Engine
from mpisign.engine.header import Header
from mpisign.robust import rows
from mpisign.robust.base import Mixing, Rule
from mpisign.stats import stage
from mpisign.transports.base import Pending, Steps
from mpisign.transports.tagged import TaggedTransport

_FUNCTION = "aggregate"


def aggregate(
    x: Any,
    comm: Any = None,
    *,
    rule: Rule | str,
    seed: int = 0,
    step: int | None = None,
    out: Any = None,
) -> Any:
    """``rule`` of all ranks' ``x``, bit for bit the same on every rank.

    ``x``: float32, float16, bfloat16 or float64, NumPy or CuPy array or torch tensor of any shape,
    one length and dtype on all ranks; computed on in host memory, in float32 or float64. Returns an
    array of the same framework, shape and dtype, or ``out``, which may be ``x``. ``rule``: such as
    ``Median()``, or its name; the rows are the ranks, of which ``f`` may be hostile. An ``x`` with
    NaN or infinity is left out as if its rank had not come. ``seed`` and ``step`` (default: the
    communicator's count of calls) draw what is random. ``comm``: as ``majority_vote``'s.

    Wire, float32, or float64 where x is: 8 bytes to all, how many coordinates are not finite; to
    rank r the coordinates [d r // p, d (r + 1) // p); partial distances, where the rule asks for
    them; the owner's shard of the result to all. 8 d (1 - 1/p) bytes each way and 8 (p - 1), and
    4 p (p - 1) (p + 1) for distances. Trusts the owners: each decides its d / p coordinates, and
    one that lies about distances sways which rows are chosen.

    Errors, the same on every rank: NaNError (no rank's x is finite), DisagreementError,
    CollectiveError (bad arguments on some rank), CollectiveTimeout, WireError. TypeError for a
    ``comm`` that is none.
    """
    engine = engine_of(_FUNCTION, comm)
    number = engine.next_step()
    step = number if step is None else step
    try:
        call = _Aggregate(x, rule, out, engine, seed, step)
    except Exception as error:
        refusal = Header("robust_aggregate").refusal(str(error).removeprefix(f"{_FUNCTION}: "))
        return engine.submit(
            _FUNCTION, lambda wire: engine.headers(wire, refusal, _FUNCTION)
        ).wait()
    return engine.submit(_FUNCTION, lambda wire: call.steps(engine, wire, number), step).wait()


class _Aggregate:
    """One call, its arguments checked."""

    def __init__(self, x: Any, rule: Any, out: Any, engine: Engine, seed: Any, step: Any) -> None:
        self._view = v = arrays.view_floats(_FUNCTION, "x", x)
        rest = {"algorithm": "auto", "zeros": "random", "nan": "abstain", "ties": "random"}
        how = {"seed": seed, "step": step}
        check_settings(_FUNCTION, {**rest, **how, "weight": 1, "byzantine_f": 0})
        self._rule = rule = rule_of(_FUNCTION, rule)
        rule.check(engine.transport.size)
        if rule.center is not None and rule.center.shape != (v.length,):
            raise ValueError(
                f"{_FUNCTION}: the rule's m must be a vector ({v.length},) for x of {v.length} "
                f"coordinates, got {tuple(rule.center.shape)}"
            )
        self._out = arrays.empty(v.shape, v.dtype, like=v) if out is None else out
        o = arrays.view_floats(_FUNCTION, "out", self._out, writable=True)
        if o.shape != v.shape or o.dtype != v.dtype or not o.contiguous:
            raise ValueError(
                f"{_FUNCTION}: out must be C-contiguous {v.dtype} {v.shape}, "
                f"got {o.dtype} {o.shape}"
            )
        self._rng = np.random.default_rng([seed, step])
        self._flat = _on_host(x, v)
        self.header = Header(
            "robust_aggregate",
            dtype=v.dtype,
            length=v.length,
            nan="abstain",
            settings=identity(rule),
            **how,
        )

    def steps(self, engine: Engine, wire: TaggedTransport, number: int) -> Steps[Any]:
        yield from engine.headers(wire, self.header, _FUNCTION)
        result = np.empty_like(self._flat)
        yield from robust_rows(wire, self._flat, self._rule, self._rng, result, function=_FUNCTION)
        digest = engine.due_digest(number)
        if digest is not None:
            digest.update(result)
            engine.digest = digest.field()
        with stage("unpack"):
            _give(result.reshape(self._view.shape), self._out)
        return self._out


def robust_rows(
    wire: TaggedTransport,
    flat: Any,
    rule: Rule,
    rng: np.random.Generator,
    out: Any,
    *,
    function: str,
    nan: str = "abstain",
) -> Steps[None]:
    """The collective after its headers: ``rule`` of all ranks' ``flat`` to ``out``.

    Both float32 or float64 (d,), contiguous, without memory in common; ``rule.check`` has passed.
    ``rng``: in the same state on all ranks, and left in it. ``nan``: NaNError on all ranks under
    "raise" where one's ``flat`` is not finite, else its row is left out.
    """
    shards = Shards(flat.size, wire.size)
    if not flat.size:
        return
    told = np.zeros((wire.size, 8), dtype=np.uint8)
    yield wire.allgather(np.array([infinite(flat)], "<u8").view(np.uint8), told)
    counts = told.view("<u8")[:, 0]
    if nan == "raise":
        refuse_nans(function, counts.tolist())
    lost: Flags = counts > 0
    own = wire.rank
    pieces = [
        np.empty((wire.size, at.stop - at.start), dtype=flat.dtype)
        for at in (shards.piece(own, i) for i in range(shards.pieces))
    ]
    others = wire.transport.others()

    def send(i: int) -> Pending:
        pieces[i][own] = flat[shards.piece(own, i)]
        return wire.exchange(
            [(r, flat[shards.piece(r, i)].view(np.uint8)) for r in others],
            [(r, pieces[i][r].view(np.uint8)) for r in others],
        )

    reduction = Reduction(
        wire, shards, rule, rng, out, lost, function=function, name=lambda r: f"rank {r}"
    )
    yield from reduction.steps(pieces, send)


def infinite(flat: Any) -> int:
    """How many coordinates a row has because of which it is left out: 0 if it may stay."""
    if rows.finite(flat[None])[0]:
        return 0
    return max(1, int(flat.size - np.isfinite(flat).sum()))


def rule_of(function: str, rule: Any) -> Rule:
    """A rule from itself or its name; TypeError, ValueError for what is none."""
    if isinstance(rule, str):
        from mpisign.robust.names import by_name

        rule = by_name(rule)
    if not isinstance(rule, Rule) or isinstance(rule, Mixing):
        raise TypeError(
            f"{function}: rule must be a rule of mpisign.robust or its name, got {rule!r}"
        )
    return rule


def identity(rule: Rule) -> int:
    """64 bits of BLAKE2b over a rule: ranks with another one are found out."""
    digest = hashlib.blake2b(repr(rule).encode(), digest_size=8)
    if rule.center is not None:  # of which repr says little
        digest.update(arrays.host(rule.center).tobytes())
    return int.from_bytes(digest.digest(), "little")


def _on_host(x: Any, v: arrays.View) -> Any:
    """``x`` as float32 or float64 (d,), contiguous, in host memory of its own or its own memory."""
    dtype = "float64" if v.dtype == "float64" else "float32"
    if v.is_torch:
        import torch

        return x.detach().reshape(-1).to("cpu", getattr(torch, dtype)).contiguous().numpy()
    return np.ascontiguousarray(arrays.host(x).reshape(-1).astype(dtype, copy=False))


def _give(result: Any, out: Any) -> None:
    if arrays.is_torch(out):
        import torch

        with torch.no_grad():
            out.copy_(torch.from_numpy(result))
    elif isinstance(out, np.ndarray):
        out[...] = result
    else:
        out.set(result.astype(out.dtype))
