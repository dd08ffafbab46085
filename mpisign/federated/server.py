"""What clients send to rank 0, and what it sends back: float32 numbers of agreed sizes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpisign.engine.engine import Engine
from mpisign.engine.header import Header
from mpisign.errors import NaNError, WireError
from mpisign.federated.matching import Array, Units
from mpisign.transports.base import Bytes, Steps
from mpisign.transports.tagged import TaggedTransport

_OPERATION = "federated"
_UNITS = 1 << 16  # of a client's layer
_BYTES = (1 << 31) - 1  # of a layer

#: Of all clients' units (n, d), and the clients' weights: the global units and where each is.
Decide = Callable[[list[Array], list[float]], tuple[Array, Sequence[Units]]]


@dataclass(frozen=True)
class Received:
    """The global layer (L, d), which of its units are this client's, and its bytes up and down."""

    units: Array
    places: Units
    up: int
    down: int


def settings_of(*told: Any) -> int:
    """64 bits of BLAKE2b over what must be the same on all clients."""
    digest = hashlib.blake2b(repr(told).encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


def weights_of(engine: Engine, function: str, weight: float, settings: int) -> list[float]:
    """Every client's weight, by rank. Collective; the headers carry it."""

    def make(number: int, step: int) -> Any:
        header = Header(_OPERATION, settings=settings, weight=weight)

        def steps(wire: TaggedTransport) -> Steps[list[float]]:
            agreed = yield from engine.headers(wire, header, function)
            return agreed.weights or [1.0] * wire.size

        return steps

    return engine.start(function, _OPERATION, 0, make).wait()  # type: ignore[no-any-return]


def through_server(
    engine: Engine,
    function: str,
    own: Any,
    decide: Decide,
    *,
    layer: int,
    round_: int,
    settings: int,
    weight: float,
    extra: int = 0,
    needs: Callable[[], Any] | None = None,
) -> Received:
    """Rank 0 makes one layer of all clients' and sends it to all. Collective.

    ``own``: float32 (n, d) of this client's n units; d is the same on all clients, n need not be.
    ``decide`` runs on rank 0 alone, since floating-point sums may differ from machine to machine.
    ``extra``: so many last columns go up alone. ``needs``: raises on rank 0 if ``decide`` would.

    Wire, little-endian: headers; to all n and how many numbers are not finite, two u64; to rank 0
    the float32 (n, d). From rank 0 to each L, u64, then float32 (L, d - extra) and, u32 (n,), the
    places of the client's units. Sizes are checked before memory is taken. Nothing is unpickled.
    Digests of the results are compared as those of votes (``engine/replicas.py``).

    Raises NaNError on all ranks if one's layer is not finite; DisagreementError, CollectiveError;
    WireError for sizes or places that no rank sends that follows the rules.
    """

    def make(number: int, step: int) -> Any:
        if needs is not None and engine.transport.rank == 0:
            needs()
        units = np.ascontiguousarray(own, dtype="<f4")
        if not 0 < len(units) <= _UNITS or units.nbytes > _BYTES:
            raise ValueError(
                f"{function}: layer {layer} must have 1 to {_UNITS} units and at most {_BYTES} "
                f"bytes, got {units.shape}"
            )
        header = Header(
            _OPERATION,
            length=units.shape[1],
            tensor=layer,
            step=step,
            settings=settings,
            weight=weight,
        )

        def steps(wire: TaggedTransport) -> Steps[Received]:
            agreed = yield from engine.headers(wire, header, function)
            counts = yield from _counts(wire, units, function, layer)
            weights = agreed.weights or [1.0] * wire.size
            columns = units.shape[1] - extra
            if wire.rank == 0:
                found = yield from _serve(wire, units, counts, columns, decide, weights)
            else:
                found = yield from _ask(wire, units, counts, columns)
            engine.replicas.add(number, found[0])
            down = found[0].nbytes + 4 * len(units) + 8
            return Received(found[0].astype(np.float64), found[1], units.nbytes + 16, down)

        return steps

    return engine.start(function, _OPERATION, round_, make).wait()  # type: ignore[no-any-return]


def _counts(wire: TaggedTransport, units: Any, function: str, layer: int) -> Steps[list[int]]:
    told = np.zeros((wire.size, 16), dtype=np.uint8)
    wrong = int(units.size - np.isfinite(units).sum())
    yield wire.allgather(np.array([len(units), wrong], dtype="<u8").view(np.uint8), list(told))
    counts, infinite = told.view("<u8").T.tolist()
    for rank, n in enumerate(counts):
        if not 0 < n <= _UNITS or 4 * n * units.shape[1] > _BYTES:
            raise WireError(f"rank {rank} announced {n} units of layer {layer}")
    if any(infinite):
        held = ", ".join(f"{n} on rank {r}" for r, n in enumerate(infinite) if n)
        raise NaNError(
            f"{function}: layer {layer} must be finite, got numbers that are not: {held}"
        )
    return counts  # type: ignore[no-any-return]


def _serve(
    wire: TaggedTransport,
    units: Any,
    counts: Sequence[int],
    columns: int,
    decide: Decide,
    weights: list[float],
) -> Steps[tuple[Any, Units]]:
    rows = [np.empty((n, units.shape[1]), dtype="<f4") for n in counts]
    rows[0] = units
    yield wire.exchange([], [(r, _bytes(rows[r])) for r in wire.others])
    # What a client announced as finite may arrive otherwise.
    for rank, row in enumerate(rows):
        if not np.isfinite(row).all():
            raise WireError(f"rank {rank} sent numbers that are not finite")
    decided, places = decide([row.astype(np.float64) for row in rows], weights)
    merged = np.ascontiguousarray(decided[:, :columns], dtype="<f4")
    size = np.array([len(merged)], dtype="<u8").view(np.uint8)
    yield wire.exchange([(r, size) for r in wire.others], [])
    sent = [_bytes(np.ascontiguousarray(own, dtype="<u4")) for own in places]
    parts = [part for r in wire.others for part in ((r, _bytes(merged)), (r, sent[r]))]
    yield wire.exchange(parts, [])
    return merged, places[0]


def _ask(
    wire: TaggedTransport, units: Any, counts: Sequence[int], columns: int
) -> Steps[tuple[Any, Units]]:
    yield wire.exchange([(0, _bytes(units))], [])
    size = np.zeros(8, dtype=np.uint8)
    yield wire.exchange([], [(0, size)])
    n = int(size.view("<u8")[0])
    if not max(counts) <= n <= sum(counts):
        raise WireError(f"rank 0 made {n} units of layers of {counts}")
    merged, own = np.empty((n, columns), dtype="<f4"), np.empty(len(units), dtype="<u4")
    yield wire.exchange([], [(0, _bytes(merged)), (0, _bytes(own))])
    if len(np.unique(own)) != len(own) or own.max() >= n:
        raise WireError("rank 0 sent places of units that are not distinct or do not exist")
    return merged, own.astype(np.int64)


def _bytes(values: Any) -> Bytes:
    return values.reshape(-1).view(np.uint8)  # type: ignore[no-any-return]
