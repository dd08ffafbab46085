"""robust_aggregate: a robust rule on one vector a rank, of which no rank holds all."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from mpisign.backend import arrays
from mpisign.collectives.majority_vote import check_options
from mpisign.collectives.robust_shards import Flags, Reduction, Shards
from mpisign.engine.agreement import refuse_nans
from mpisign.engine.engine import Engine
from mpisign.engine.handle import Handle
from mpisign.engine.header import Header
from mpisign.robust import rows
from mpisign.robust.base import Mixing, Rule
from mpisign.stats import stage
from mpisign.transports.base import Pending, Steps
from mpisign.transports.tagged import TaggedTransport

_FUNCTION = "robust_aggregate"


def start(engine: Engine, x: Any, rule: Any, seed: Any, step: Any, out: Any) -> Handle:
    """Starts ``Communicator.robust_aggregate``."""

    def make(number: int, step: int) -> Any:
        v = arrays.view_floats(_FUNCTION, "x", x)
        check_options(_FUNCTION, step=step, seed=seed)
        known = rule_of(_FUNCTION, rule)
        known.check(engine.transport.size)
        if known.center is not None and known.center.shape != (v.length,):
            raise ValueError(
                f"{_FUNCTION}: the rule's m must be a vector ({v.length},) for x of {v.length} "
                f"coordinates, got {tuple(known.center.shape)}"
            )
        result = arrays.empty(v.shape, v.dtype, like=v) if out is None else out
        o = arrays.view_floats(_FUNCTION, "out", result, writable=True)
        if o.shape != v.shape or o.dtype != v.dtype or not o.contiguous:
            raise ValueError(
                f"{_FUNCTION}: out must be C-contiguous {v.dtype} {v.shape}, "
                f"got {o.dtype} {o.shape}"
            )
        rng = np.random.default_rng([seed, step])
        flat = _on_host(x, v)
        header = Header(
            _FUNCTION,
            dtype=v.dtype,
            length=v.length,
            nan="abstain",
            settings=identity(known),
            seed=seed,
            step=step,
        )

        def steps(wire: TaggedTransport) -> Steps[Any]:
            yield from engine.headers(wire, header, _FUNCTION)
            reduced = np.empty_like(flat)
            yield from robust_rows(wire, flat, known, rng, reduced, function=_FUNCTION)
            engine.replicas.add(number, reduced)
            with stage("unpack"):
                _give(reduced.reshape(v.shape), result)
            return result

        return steps

    return engine.start(_FUNCTION, _FUNCTION, step, make)


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
    others = wire.others

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
