"""compressed_mean: the mean as scaled signs, with error feedback on both sides."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpisign import planes, policies
from mpisign.backend import arrays
from mpisign.collectives.compressed_mean_state import CompressedMeanState
from mpisign.collectives.majority_vote import check_settings
from mpisign.collectives.scaled_signs import ScaledSigns
from mpisign.communicator import engine_of
from mpisign.engine.agreement import Agreed
from mpisign.engine.engine import Engine
from mpisign.engine.header import Header
from mpisign.engine.pipeline import pipelined
from mpisign.errors import NaNError
from mpisign.transports.base import Pending, Steps
from mpisign.transports.tagged import TaggedTransport

_FUNCTION = "compressed_mean"
_CHUNK = 1 << 17  # bytes of a plane that travel together, at least
_CHUNKS = 16


def compressed_mean(
    x: Any,
    state: CompressedMeanState,
    comm: Any = None,
    *,
    zeros: policies.Zeros = policies.DEFAULT_ZEROS,
    nan: policies.Nan = policies.DEFAULT_NAN,
    seed: int = 0,
    step: int | None = None,
    out: Any = None,
) -> Any:
    """About the mean of ``x`` over the ranks, bit for bit the same on every rank, float32.

    C(q) = mean|q| sign(q), block by block. Each rank sends d = C(x + e) and keeps e = x + e - d;
    the owner of a shard, with a the mean of all d, sends r = C(a + e') and keeps e' = a + e' - r.
    All return r. What one step leaves out the next ones add: over steps, the sum of r stays near
    that of the means of x. fp32, each operation rounded, ranks added in order.

    ``x``: float32, float16, bfloat16 or float64 in host memory, NumPy array or torch tensor, any
    shape, one length and dtype on all ranks. ``state``: this rank's ``CompressedMeanState`` of that
    length, which says the blocks. Returns float32 of x's shape and framework, or ``out``, which is
    C-contiguous and may be ``x``. ``comm``, zeros, nan, seed, step: as ``majority_vote``'s; nan is
    about all that is not finite in float32: "abstain" has it count 0 in the mean; it never enters
    a residual.

    Wire, per rank: k B (1 - 1/p) bytes up and kd B (1 - 1/p) down, B = ceil(d / 8), k = 2 if
    coordinates may abstain, kd = 2 under zeros="abstain", else 1. Up, chunk by chunk: to each owner
    the bytes of its part of the planes, and the scales of its blocks (of the one block), float32,
    little-endian; down: the same of r, to all; under nan="raise", behind the last part up, 8 bytes
    of count to all. Trusts the owners.

    Errors, the same on every rank: as ``majority_vote``'s; NaNError under nan="raise". On a rank
    that raises, ``state`` is as before and ``out`` of no use. Source: Tang et al. 2021, 1-bit Adam,
    Algorithm 1 (DeepSpeed's compressed allreduce); Seide et al. 2014, 1-bit SGD.
    """
    engine = engine_of(_FUNCTION, comm)
    number = engine.next_step()
    step = number if step is None else step
    settings = {"zeros": zeros, "nan": nan, "seed": seed, "step": step}
    try:
        mean = _Mean(x, state, out, engine, settings)
    except Exception as error:
        refusal = Header(_FUNCTION).refusal(str(error).removeprefix(f"{_FUNCTION}: "))
        return engine.submit(
            _FUNCTION, lambda wire: engine.headers(wire, refusal, _FUNCTION)
        ).wait()
    return engine.submit(_FUNCTION, lambda wire: mean.steps(engine, wire, number), step).wait()


class _Mean:
    """One call, its arguments checked."""

    def __init__(
        self, x: Any, state: Any, out: Any, engine: Engine, settings: dict[str, Any]
    ) -> None:
        v = arrays.view_floats(_FUNCTION, "x", x)
        rest = {"algorithm": "auto", "ties": "random", "weight": 1, "byzantine_f": 0}
        check_settings(_FUNCTION, settings | rest)
        if v.device != "cpu":
            raise TypeError(f"{_FUNCTION}: x must be in host memory, got device {v.device}")
        rank, size = engine.transport.rank, engine.transport.size
        if not isinstance(state, CompressedMeanState):
            raise TypeError(
                f"{_FUNCTION}: state must be a CompressedMeanState, got {type(state).__name__}"
            )
        if (state.rank, state.size) != (rank, size):
            raise ValueError(
                f"{_FUNCTION}: state must be that of rank {rank} of {size}, got rank {state.rank} "
                f"of {state.size} (a new one can load this one's state_dict)"
            )
        if state.length != v.length:
            raise ValueError(
                f"{_FUNCTION}: state must have {v.length} coordinates as x has, got {state.length}"
            )
        if out is None:
            out = arrays.empty(v.shape, "float32", like=v)
        o = arrays.view_floats(_FUNCTION, "out", out, writable=True)
        if o.dtype != "float32" or o.shape != v.shape or not o.contiguous or o.device != "cpu":
            raise ValueError(
                f"{_FUNCTION}: out must be C-contiguous float32 {v.shape}, got {o.dtype} {o.shape}"
            )
        self._x, self._state = x.reshape(-1), state
        if v.contiguous and arrays.overlap_partly(v, o):
            raise ValueError(f"{_FUNCTION}: out must be x or share no memory with it")
        self._out, self._flat = out, out.reshape(-1)
        self._how = settings
        self.header = Header(
            _FUNCTION, dtype=v.dtype, length=v.length, settings=state.block or 0, **settings
        )

    def steps(self, engine: Engine, wire: TaggedTransport, number: int) -> Steps[Any]:
        agreed = yield from engine.headers(wire, self.header, _FUNCTION)
        yield from exchange(
            engine, wire, self._state, self._how, self._x, self._flat, number, agreed
        )
        return self._out


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
    digest = engine.due_digest(number)
    if digest is not None:
        digest.update(signs.down)
        digest.update(signs.down_scales)
        engine.digest = digest.field()


def _refuse(function: str, bad: list[int]) -> None:
    if any(bad):
        held = ", ".join(f"{n} on rank {r}" for r, n in enumerate(bad) if n)
        x = "x" if function == _FUNCTION else "gradients"
        raise NaNError(
            f"{function}: {x} plus residual must be finite under nan='raise', got {held} "
            "that are not (nan='abstain' leaves them out of the mean)"
        )
