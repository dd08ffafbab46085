"""compressed_mean: the mean as scaled signs, with error feedback on both sides."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpisign import planes
from mpisign.backend import arrays
from mpisign.collectives.compressed_mean_state import CompressedMeanState
from mpisign.collectives.majority_vote import check_options
from mpisign.collectives.scaled_signs import ScaledSigns
from mpisign.engine.agreement import Agreed
from mpisign.engine.engine import Engine
from mpisign.engine.handle import Handle
from mpisign.engine.header import Header
from mpisign.engine.pipeline import pipelined
from mpisign.errors import NaNError
from mpisign.transports.base import Pending, Steps
from mpisign.transports.tagged import TaggedTransport

_FUNCTION = "compressed_mean"
_CHUNK = 1 << 17  # bytes of a plane that travel together, at least
_CHUNKS = 16


def start(engine: Engine, x: Any, state: Any, out: Any, step: int | None, **options: Any) -> Handle:
    """Starts ``Communicator.compressed_mean``."""

    def make(number: int, step: int) -> Any:
        v = arrays.view_floats(_FUNCTION, "x", x)
        check_options(_FUNCTION, step=step, **options)
        if v.device != "cpu":
            raise TypeError(f"{_FUNCTION}: x must be in host memory, got device {v.device}")
        _check_state(state, engine.transport.rank, engine.transport.size, v.length)
        result = arrays.empty(v.shape, "float32", like=v) if out is None else out
        o = arrays.view_floats(_FUNCTION, "out", result, writable=True)
        if o.dtype != "float32" or o.shape != v.shape or not o.contiguous or o.device != "cpu":
            raise ValueError(
                f"{_FUNCTION}: out must be C-contiguous float32 {v.shape}, got {o.dtype} {o.shape}"
            )
        flat = x.reshape(-1), result.reshape(-1)
        if v.contiguous and arrays.overlap_partly(v, o):
            raise ValueError(f"{_FUNCTION}: out must be x or share no memory with it")
        how = {**options, "step": step}
        header = Header(_FUNCTION, dtype=v.dtype, length=v.length, settings=state.block or 0, **how)

        def steps(wire: TaggedTransport) -> Steps[Any]:
            agreed = yield from engine.headers(wire, header, _FUNCTION)
            yield from exchange(engine, wire, state, how, *flat, number, agreed)
            return result

        return steps

    return engine.start(_FUNCTION, _FUNCTION, step, make)


def _check_state(state: Any, rank: int, size: int, length: int) -> None:
    if not isinstance(state, CompressedMeanState):
        raise TypeError(
            f"{_FUNCTION}: state must be a CompressedMeanState, got {type(state).__name__}"
        )
    if (state.rank, state.size) != (rank, size):
        raise ValueError(
            f"{_FUNCTION}: state must be that of rank {rank} of {size}, got rank {state.rank} "
            f"of {state.size} (a new one can load this one's state_dict)"
        )
    if state.length != length:
        raise ValueError(
            f"{_FUNCTION}: state must have {length} coordinates as x has, got {state.length}"
        )


def exchange(
    engine: Engine,
    wire: TaggedTransport,
    state: CompressedMeanState,
    how: dict[str, Any],
    x: Any,
    out: Any,
    number: int,
    agreed: Agreed,
) -> Steps[None]:
    """The collective after its headers: flat ``x`` to its mean in ``out``, which may be ``x``.

    ``how``: zeros, nan, seed, step. ``state`` is as before if this raises.
    """
    signs = ScaledSigns(wire, state, how, x, out)
    b = planes.plane_bytes(state.length)
    n = 1 if state.block is None else max(1, min(_CHUNKS, b // _CHUNK))
    pieces = [[state.piece(r, i, n) for r in range(wire.size)] for i in range(n)]
    bad = np.zeros((wire.size, 8), dtype=np.uint8)
    told: list[Pending] = []

    def send(i: int) -> Pending:
        sent = signs.send(pieces[i])
        if i == n - 1 and agreed.header.nan == "raise":
            own = np.array([signs.bad], dtype="<u8").view(np.uint8)
            told.append(wire.allgather(own, bad))
        return sent

    yield from pipelined(
        n,
        send,
        lambda i: signs.average(pieces[i]),
        lambda i: signs.receive(pieces[i]),
    )
    yield from told
    _refuse(agreed.function, bad.view("<u8")[:, 0].tolist())
    state.commit()
    engine.replicas.add(number, signs.down, signs.down_scales)


def _refuse(function: str, bad: list[int]) -> None:
    if any(bad):
        held = ", ".join(f"{n} on rank {r}" for r, n in enumerate(bad) if n)
        x = "x" if function == _FUNCTION else "gradients"
        raise NaNError(
            f"{function}: {x} plus residual must be finite under nan='raise', got {held} "
            "that are not (nan='abstain' leaves them out of the mean)"
        )
