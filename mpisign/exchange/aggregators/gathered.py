"""What every rank sends to all, who each reduce it for themselves: no shard has an owner."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch

from mpisign import planes, policies
from mpisign.collectives.gather_planes import decode_rows, gather_planes, gather_rows
from mpisign.collectives.vote_task import Planes
from mpisign.compressors.base import State
from mpisign.engine.agreement import Agreed, refuse_nans
from mpisign.engine.engine import Engine
from mpisign.engine.header import Header
from mpisign.errors import WireError
from mpisign.exchange.aggregators.base import Aggregator
from mpisign.exchange.aggregators.masked import keep_where_zero, silence_zeros
from mpisign.exchange.parameter_slot import ParameterSlot
from mpisign.stats import stage
from mpisign.transports.base import Steps
from mpisign.transports.tagged import TaggedTransport


class Gathered(Aggregator):
    """Packs, sends to all, checks what came, and only then changes states and gradients.

    Wire, a rank's message to all: NaNs u64, one float32 scale for each member (block of a member)
    that has a gradient somewhere, then the plane (B,), or what ``planes.encode`` makes of planes
    (2, B), all little-endian; where they are coded, their lengths go first (``gather_planes``). A
    rank without a gradient for a member sends what zeros would, one that is absent an empty
    message: rows are those of the ranks that take part.
    """

    def begin(self, header: Header, message: int) -> None:
        super().begin(header, message)
        header.nan_count_pending = True

    def steps(
        self, engine: Engine, wire: TaggedTransport, agreed: Agreed, number: int, anywhere: Any
    ) -> Steps[None]:
        members = [i for i, there in enumerate(anywhere) if there]
        with stage("pack"):
            mine = _Packed(self, members)
        nans, scales, stack = yield from mine.gather(wire)
        if agreed.header.nan == "raise":
            refuse_nans(agreed.function, nans)
        self._check(scales, stack)
        if not self.absent:
            mine.commit()
        on_host = all(s.parameter.device.type == "cpu" for s in self.slots)
        result = engine.replicas.begin(number, on_host)
        for i, s, t in zip(members, mine.ends, mine.ends[1:], strict=False):
            rows = stack[:, :, self.bucket.span(i)]
            grad = self._write(i, rows if rows.shape[1] == 2 else rows[:, 0], scales[:, s:t])
            if result is not None and grad.numel():
                flat = grad.detach().cpu().contiguous().reshape(-1)
                result.update(flat.view(torch.uint8).numpy())
        engine.replicas.end(result)

    def _write(self, i: int, rows: Any, scales: Any) -> torch.Tensor:
        m = self.slots[i]
        grad = m.target()
        direct = grad.dtype == torch.float32 and grad.is_contiguous()
        out = grad if direct else torch.empty(grad.shape, device=grad.device)
        if grad.numel():
            if grad.device.type != "cpu":
                rows = torch.from_numpy(np.ascontiguousarray(rows)).to(grad.device)
            with stage("vote"):
                self._reduce(i, rows, scales, out)
        with stage("unpack"):
            given = self._given(m, out)
            if given is not grad:
                grad.copy_(given)
        return grad

    @abstractmethod
    def _reduce(self, i: int, rows: Any, scales: Any, out: torch.Tensor) -> None:
        """ParameterSlot i's aggregate, float32, from planes (n, B) or (n, 2, B), scales (n, s)."""

    def _given(self, m: ParameterSlot, aggregate: torch.Tensor) -> torch.Tensor:
        """What the optimizer is handed of it."""
        return aggregate

    def _check(self, scales: Any, stack: Planes) -> None:
        """WireError, the same on every rank, for what no rank that follows the rules sends."""
        ranks = self.present or range(self.size)
        for rank, row in zip(ranks, scales, strict=True):
            if not ((row >= 0) & np.isfinite(row)).all():
                raise WireError(f"rank {rank} sent a scale that is no number from 0")
        ends = [
            (self.bucket.span(i).stop - 1, 0xFF << n % 8 & 0xFF)
            for i, n in enumerate(self.bucket.lengths)
            if n % 8
        ]
        if not ends:
            return
        last, padding = (np.array(x) for x in zip(*ends, strict=True))
        bad = (stack[:, :, last] & padding.astype(np.uint8)).any(axis=(1, 2))
        if bad.any():
            raise WireError(f"rank {ranks[int(bad.argmax())]} sent planes with padding not 0")


class _Packed:
    """One rank's message. States change with ``commit`` alone: a step that fails leaves none."""

    def __init__(self, of: Gathered, members: list[int]) -> None:
        c, bucket = of.compressor, of.bucket
        self._members = [of.slots[i] for i in members]
        self._states: list[State] = [_copied(m.state, c.shared) for m in self._members]
        sent = [c.scales_of(m.parameter.numel()) for m in self._members]
        #: Where each member's scales end among all.
        self.ends = np.cumsum([0, *sent])
        self._head = 8 + 4 * int(self.ends[-1])
        self._length = bucket.length
        self._planes = np.zeros((policies.planes_up(c.zeros, c.nan), bucket.nbytes), dtype=np.uint8)
        scales = np.zeros(int(self.ends[-1]), dtype="<f4")
        self._ranks, self._absent, nans = of.present or range(of.size), of.absent, 0
        if not self._absent:
            nans = self._pack(of, [bucket.offsets[i] for i in members], scales)
        self._told = np.concatenate([np.array([nans], "<u8").view(np.uint8), scales.view(np.uint8)])

    def _pack(self, of: Gathered, offsets: list[int], scales: Any) -> int:
        if not self._members:
            return 0
        device = self._members[0].parameter.device
        there: tuple[Any, Any] = self._planes, scales
        if device.type != "cpu":
            there = (
                torch.zeros(self._planes.shape, dtype=torch.uint8, device=device),
                torch.zeros(scales.shape, dtype=torch.float32, device=device),
            )
        grads = [_gradient(m) for m in self._members]
        nans = of.compressor.pack(
            grads,
            self._states,
            there[0] if len(self._planes) == 2 else there[0][0],
            offsets,
            replace(of.context, rates=[s.rate for s in self._members], scales=there[1]),
        )
        if of.masked:
            silence_zeros(grads, there[0], offsets)
            for m, g, state in zip(self._members, grads, self._states, strict=True):
                if "residual" in state:
                    keep_where_zero(g, m.state.get("residual"), state["residual"])
        if device.type != "cpu":
            self._planes[...], scales[...] = (x.cpu().numpy() for x in there)
        return int(nans)

    def gather(self, wire: TaggedTransport) -> Steps[tuple[list[int], Any, Planes]]:
        """NaNs of all ranks; of those that take part scales (n, s) and planes (n, k, B)."""
        ranks, nothing = self._ranks, np.empty(0, dtype=np.uint8)
        if len(self._planes) == 1:
            message = np.concatenate([self._told, self._planes[0]])
            dense = np.empty((len(ranks), message.size), dtype=np.uint8)
            of = dict(zip(ranks, dense, strict=True))
            rows = [of.get(r, nothing) for r in range(wire.size)]
            yield from gather_rows(wire, nothing if self._absent else message, rows)
            return *self._read(dense, wire.size), dense[:, None, self._head :]
        with stage("pack"):
            message = np.concatenate([self._told, planes.encode(self._planes)])
        limit = self._head + planes.coded_bytes_bound(self._length)
        sent = yield from gather_planes(wire, nothing if self._absent else message, limit)
        rows = [sent[r] for r in ranks]
        for rank, row in zip(ranks, rows, strict=True):
            if row.size < self._head:
                raise WireError(f"rank {rank} sent a message of {row.size} bytes without scales")
        coded = [row[self._head :] for row in rows]
        return *self._read(rows, wire.size), decode_rows(coded, self._length, ranks)

    def _read(self, rows: Any, size: int) -> tuple[list[int], Any]:
        heads = np.stack([row[: self._head] for row in rows])
        nans = [0] * size
        found = np.ascontiguousarray(heads[:, :8]).view("<u8")[:, 0].tolist()
        for rank, n in zip(self._ranks, found, strict=True):
            nans[rank] = n
        return nans, np.ascontiguousarray(heads[:, 8:]).view("<f4")

    def commit(self) -> None:
        """All went well: what this step made of the states."""
        for m, state in zip(self._members, self._states, strict=True):
            m.state.update(state)


class GatheredVote(Gathered):
    """The majority of the votes that are there, by ``ties`` where there is none."""

    operation: ClassVar[str] = "bucket_gathered_vote"

    def _reduce(self, i: int, rows: Any, scales: Any, out: torch.Tensor) -> None:
        votes = planes.majority(
            rows,
            length=out.numel(),
            ties=self.compressor.ties,
            seed=self.context.seed,
            step=self.context.step,
            offset=8 * self.bucket.offsets[i],
        )
        planes.unpack(votes if out.device.type != "cpu" else torch.from_numpy(votes), out=out)


class GatheredMean(Gathered):
    """The mean of scaled signs, (1/n) sum of scale * sign: fp32, ranks added in order.

    Without scales, of +1, -1, and 0 where a coordinate abstains.
    """

    operation: ClassVar[str] = "bucket_gathered_mean"

    def _reduce(self, i: int, rows: Any, scales: Any, out: torch.Tensor) -> None:
        if not scales.shape[1]:
            scales = np.ones((len(rows), 1), dtype=np.float32)
        planes.weighted_sum(
            rows,
            scales / np.float32(len(rows)),
            block=self.compressor.block,
            length=out.numel(),
            out=out,
        )

    def _given(self, m: ParameterSlot, aggregate: torch.Tensor) -> torch.Tensor:
        return self.compressor.decompress(aggregate, m.state, m.rate)


def _copied(state: State, shared: tuple[str, ...]) -> State:
    """Copies of the tensors that packing may change."""
    return {
        key: x.clone()
        for key, x in state.items()
        if isinstance(x, torch.Tensor) and key not in shared
    }


def _gradient(m: ParameterSlot) -> torch.Tensor:
    """This rank's gradient, or zeros, which take no memory."""
    if m.grad is not None:
        return m.grad.detach()
    return torch.zeros((), device=m.parameter.device).expand(m.parameter.shape)
