"""Scaled signs on their way to the owners of shards, and the owners' back to all."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpisign import planes, policies
from mpisign.collectives.compressed_mean_state import CompressedMeanState, Floats, Piece
from mpisign.errors import WireError
from mpisign.stats import stage
from mpisign.transports.base import Part, Pending
from mpisign.transports.tagged import TaggedTransport


class ScaledSigns:
    """Planes and scales of one call, whole: what this rank sends, what it owns, the result's.

    ``x``, ``out``: flat, maybe the same memory: a chunk of ``out`` is written to once that of ``x``
    is packed, first as room for the mean.
    """

    def __init__(
        self,
        wire: TaggedTransport,
        state: CompressedMeanState,
        how: dict[str, Any],
        x: Any,
        out: Any,
    ) -> None:
        self._line, self._state, self._how, self._x, self._out = wire, state, how, x, out
        k = policies.planes_up(how["zeros"], how["nan"])
        kd = policies.planes_up(how["zeros"], "raise")
        b, own, shard = planes.plane_bytes(state.length), state.shard, state.shard.b - state.shard.a
        self._up = np.empty((k, b), dtype=np.uint8)
        self._up_scales = np.empty(state.scales, dtype="<f4")
        self._stack = np.empty((wire.size, k, planes.plane_bytes(shard)), dtype=np.uint8)
        self._stack_scales = np.empty((wire.size, own.t - own.s), dtype="<f4")
        self.down = np.empty((kd, b), dtype=np.uint8)
        self.down_scales = np.zeros(state.scales, dtype="<f4")
        self._residual, self._owner_residual = state.begin()
        self.bad = 0
        self._bulk = b >= wire.transport.message * wire.size

    def send(self, pieces: list[Piece]) -> Pending:
        """Packs a chunk, and starts sending it to the owners."""
        state, wire = self._state, self._line
        if state.block is None:  # one scale: the whole is packed before any of it can go
            pack, scale = Piece(0, state.length, 0, 1), np.empty(1, dtype="<f4")
            self._pack(pack, scale)
            self._up_scales[...] = scale
        else:
            for m in pieces:
                self._pack(m, self._up_scales[m.s : m.t])
        stack, stack_scales = self._mine(pieces)
        own = pieces[wire.rank]
        stack[wire.rank] = own.planes(self._up)
        stack_scales[wire.rank] = self._up_scales[own.s : own.t]
        sends, recvs = [], []
        for r in wire.others:
            sends += _parts(r, pieces[r].planes(self._up), self._up_scales[_scales(pieces[r])])
            recvs += _parts(r, stack[r], stack_scales[r])
        return wire.exchange(sends, recvs, bulk=self._bulk)

    def _pack(self, m: Piece, scales: Floats) -> None:
        if m.b == m.a:
            return
        residual = self._residual[m.a : m.b]
        residual[...] = self._state.residual[m.a : m.b]
        with stage("pack"):
            *_, bad = planes.pack_error_feedback(
                self._x[m.a : m.b],
                residual,
                block=self._state.block,
                **self._how,
                rank=self._line.rank,
                offset=m.a,
                out=_rows(m.planes(self._up)),
                scales=scales,
            )
        self.bad += int(bad)

    def _mine(self, pieces: list[Piece]) -> tuple[Any, Any]:
        """This rank's part of a chunk, from all ranks: planes (p, k, b), scales (p, blocks)."""
        own, shard = pieces[self._line.rank], self._state.shard
        first = shard.s
        return own.planes(self._stack, shard.a), self._stack_scales[
            :, own.s - first : own.t - first
        ]

    def average(self, pieces: list[Piece]) -> Pending:
        """Averages this rank's part of a chunk that has come, and starts sending the mean."""
        wire, state = self._line, self._state
        own = pieces[wire.rank]
        if own.b > own.a:
            stack, scales = self._mine(pieces)
            for r in range(wire.size):
                self._check(r, stack[r], scales[r], own)
            with stage("vote"):
                mean = planes.weighted_sum(
                    stack if len(self._up) == 2 else stack[:, 0],
                    scales / np.float32(wire.size),
                    block=state.block,
                    length=own.b - own.a,
                    out=self._out[own.a : own.b],
                )
                part = slice(own.a - state.shard.a, own.b - state.shard.a)
                residual = self._owner_residual[part]
                residual[...] = state.owner_residual[part]
                # Owners' random bits come from streams that no rank's votes come from.
                *_, bad = planes.pack_error_feedback(
                    mean,
                    residual,
                    block=state.block,
                    **self._how | {"nan": "raise"},
                    rank=wire.size + wire.rank,
                    offset=own.a,
                    out=_rows(own.planes(self.down)),
                    scales=self.down_scales[own.s : own.t],
                )
            if bad:
                raise OverflowError(f"{int(bad)} coordinates of the mean left float32")
        sends, recvs = [], []
        for r in wire.others:
            sends += _parts(r, own.planes(self.down), self.down_scales[_scales(own)])
            recvs += _parts(r, pieces[r].planes(self.down), self.down_scales[_scales(pieces[r])])
        return wire.exchange(sends, recvs, bulk=self._bulk)

    def receive(self, pieces: list[Piece]) -> None:
        """Reads a chunk of the result."""
        for r, m in enumerate(pieces):
            if m.b == m.a:
                continue
            rows, scales = m.planes(self.down), self.down_scales[m.s : m.t]
            self._check(r, rows, scales, m)
            with stage("unpack"):
                planes.weighted_sum(
                    rows[None] if len(rows) == 2 else rows,
                    scales[None],
                    block=self._state.block,
                    length=m.b - m.a,
                    out=self._out[m.a : m.b],
                )

    def _check(self, rank: int, rows: Any, scales: Floats, m: Piece) -> None:
        if not ((scales >= 0) & np.isfinite(scales)).all():
            raise WireError(f"rank {rank} sent a scale that is no number from 0")
        if not planes.padding_is_zero(rows, m.b - m.a).all():
            raise WireError(f"rank {rank} sent planes with padding not 0")


def _scales(m: Piece) -> slice:
    return slice(m.s, m.t)


def _rows(piece: Any) -> Any:
    """Planes (k, b) as the kernels take them."""
    return piece if len(piece) == 2 else piece[0]


def _parts(rank: int, rows: Any, scales: Floats) -> list[Part]:
    return [(rank, part) for part in (*rows, scales.view(np.uint8)) if part.size]
