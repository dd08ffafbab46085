"""A majority vote on a bucket: members are packed and unpacked as their chunks come and go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from mpisign import planes, policies
from mpisign.backend import arrays
from mpisign.collectives.vote_task import Planes, VoteTask
from mpisign.compressors.base import Compressor, PackContext
from mpisign.detox.assignment import Partition
from mpisign.engine.agreement import Agreed
from mpisign.engine.engine import Engine, small
from mpisign.engine.header import Header
from mpisign.exchange.aggregators.base import Aggregator, start_momenta_again
from mpisign.exchange.buckets import Bucket
from mpisign.exchange.parameter_slot import ParameterSlot
from mpisign.stats import stage
from mpisign.transports.base import Steps
from mpisign.transports.tagged import TaggedTransport


class VoteAggregator(Aggregator):
    """The vote of all ranks, +1, -1, or 0 where ``ties="zero"``, by any voting algorithm.

    Holds one copy of the bucket's planes. A member is packed whole before any of it is sent, and
    unpacked piece by piece; only one whose memory is not contiguous waits for its last piece.
    """

    def __init__(
        self,
        bucket: Bucket,
        members: Sequence[ParameterSlot],
        compressor: Compressor,
        *,
        seed: int,
        step: int,
        rank: int,
        size: int,
        groups: Partition | None = None,
    ) -> None:
        super().__init__(
            bucket,
            members,
            compressor,
            seed=seed,
            step=step,
            rank=rank,
            size=size,
            groups=groups,
        )
        if groups is not None and hasattr(getattr(compressor, "inner", None), "momentum_dtype"):
            start_momenta_again(members, groups)
        self._packed = self._unpacked = 0
        self._inlined = False
        self._nans = 0
        self._anywhere: Any = None
        self._parts: dict[int, Planes] = {}
        up = policies.planes_up(compressor.zeros, compressor.nan)
        first = members[0].parameter.detach()
        # On a GPU planes are packed, sent and unpacked there, over the wire that takes them there.
        self._like = None if first.device.type == "cpu" else arrays.view("step", "gradient", first)
        self.planes = arrays.empty((up, bucket.nbytes), "uint8", like=self._like)
        self.planes[...] = 0
        self.task = VoteTask(
            length=bucket.length,
            k=up,
            ties=compressor.ties,
            seed=seed,
            step=step,
            pack=self._pack,
            unpack=self._unpack,
            groups=groups,
        )

    def begin(self, header: Header, message: int) -> tuple[Header, Planes | None]:
        header, _ = super().begin(header, message)
        if self._like is not None:
            header = replace(header, device=self._like.device.partition(":")[0])
        if not self.task.short(message) and not header.byzantine_f:
            return replace(header, late=True), None
        self._pack_until(self.bucket.nbytes)
        header = replace(header, nans=self._nans)
        self._inlined = small(self.task, header, self.size)
        return header, self.planes if self._inlined else None

    def steps(
        self, engine: Engine, wire: TaggedTransport, agreed: Agreed, number: int, anywhere: Any
    ) -> Steps[None]:
        self._anywhere = anywhere
        yield from engine.vote(
            wire,
            self.task,
            agreed,
            number,
            lambda: self._nans,
            inlined=self._inlined,
            like=self._like,
        )

    def _pack(self, a: int, b: int, out: Planes) -> None:
        self._pack_until(b)
        out[...] = self.planes[:, a:b]

    def _pack_until(self, b: int) -> None:
        """All members that begin before byte ``b``."""
        offsets = self.bucket.offsets
        first = last = self._packed
        while last < len(offsets) and offsets[last] < b:
            last += 1
        if first < last:
            with stage("pack"):
                self._nans += pack_members(self, first, last, self.planes)
        self._packed = last

    def _unpack(self, a: int, b: int, result: Planes) -> None:
        with stage("unpack"):
            i = self._unpacked
            while i < len(self.members):
                span = self.bucket.span(i)
                if span.start >= b and span.start < span.stop:
                    break
                low, high = max(a, span.start), min(b, span.stop)
                if self._anywhere[i] and low <= high:
                    self._put(i, low - span.start, result[:, low - a : high - a])
                if span.stop > b:
                    break
                i += 1
            self._unpacked = i

    def _put(self, i: int, first: int, votes: Planes) -> None:
        """Votes (kd, n) from byte ``first`` on as the gradient of member ``i``."""
        grad = self.members[i].target()
        if arrays.view("step", "grad", grad).contiguous:
            flat = grad.view(-1)[8 * first : 8 * (first + votes.shape[1])]
            planes.unpack(_rows(votes), out=flat)
            return
        shape = (len(votes), planes.plane_bytes(grad.numel()))
        whole = self._parts.setdefault(i, arrays.empty(shape, "uint8", like=self._like))
        whole[:, first : first + votes.shape[1]] = votes
        if first + votes.shape[1] == shape[1]:
            dense = torch.empty(grad.shape, dtype=grad.dtype, device=grad.device)
            grad.copy_(planes.unpack(_rows(whole), out=dense))
            self.members[i].version = grad._version
            del self._parts[i]


def pack_members(round: Aggregator, first: int, last: int, out: Any) -> int:
    """Members [first, last) of a round's bucket into its planes ``out`` (k, B); the NaNs."""
    c, keys, bucket = round.compressor, round.keys, round.bucket
    nans = 0
    with_grads = []
    for i in range(first, last):
        m = round.members[i]
        if m.grad is not None:
            with_grads.append(i)
            continue
        part = out[:, bucket.span(i)]
        _, _, found = planes.pack_census(
            c.compress_missing(m.parameter, m.state),
            zeros=c.zeros,
            nan=c.nan,
            offset=8 * bucket.offsets[i],
            out=_rows(part),
            **keys,
        )
        nans += int(found)
    members = [round.members[i] for i in with_grads]
    return nans + c.pack(
        [m.grad for m in members],  # type: ignore[misc]  # none is None
        [m.state for m in members],
        _rows(out),
        [bucket.offsets[i] for i in with_grads],
        PackContext(**keys),
    )


def _rows(x: Any) -> Any:
    """Planes (k, b) as the kernels take them: a plane alone as (b,)."""
    return x if len(x) == 2 else x[0]
