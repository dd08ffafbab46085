"""A majority vote on a bucket: slots are packed and unpacked chunk by chunk."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mpisign import planes, policies
from mpisign.backend import arrays
from mpisign.collectives.majority_vote import vote
from mpisign.collectives.plan import Plan
from mpisign.collectives.vote_task import Planes, VoteTask, signs_and_mask
from mpisign.engine.agreement import Agreed
from mpisign.engine.engine import Engine
from mpisign.engine.header import SHORT_ABOVE, Header
from mpisign.exchange.aggregators.base import Aggregator, restart_momenta
from mpisign.exchange.aggregators.masked import silence_zeros
from mpisign.exchange.buckets import GradientBucket
from mpisign.partition import Partition
from mpisign.planes.unpack import unpack_pieces
from mpisign.stats import stage
from mpisign.transports.base import Steps
from mpisign.transports.tagged import TaggedTransport

_CODES = {getattr(torch, name): code for name, code in arrays.FLOAT_CODES.items()}


class BucketTask(VoteTask):
    """The vote on one bucket. Keeps a copy of the bucket's planes from step to step.

    A slot is packed whole before any of it is sent, and unpacked piece by piece; only one whose
    memory is not contiguous waits for its last piece.
    """

    def __init__(self, aggregator: VoteAggregator, like: arrays.View | None) -> None:
        c, layout = aggregator.compressor, aggregator.bucket
        k = policies.planes_up(c.zeros, c.nan)
        super().__init__(layout.length, k, c.ties, 0, 0, aggregator.groups, like)
        self.aggregator, self.spans = aggregator, layout.spans
        self.in_place = like is None  # votes are unpacked straight into gradients
        self.planes = arrays.empty((k, layout.nbytes), "uint8", like=like)
        self.planes[...] = 0
        self.reset(0, 0)

    def reset(self, seed: int, step: int) -> None:
        """Begins a step."""
        self.seed, self.step = seed, step
        self.nans = 0
        self._packed = self._unpacked = 0
        self.anywhere: Any = None  # of the step, once agreed
        self._pieces: dict[int, Planes] = {}

    def pack(self, a: int, b: int, out: Planes) -> None:
        self.pack_until(b)
        out[...] = self.planes[:, a:b]

    def pack_whole(self) -> None:
        self.pack_until(self.nbytes)

    def pack_until(self, b: int) -> None:
        """All slots that begin before byte ``b``."""
        first = last = self._packed
        while last < len(self.spans) and self.spans[last][0] < b:
            last += 1
        if self.aggregator.absent:
            self.planes[...] = 0
        elif first < last:
            with stage("pack"):
                self.nans += pack_slots(self.aggregator, first, last, self.planes)
        self._packed = last

    def write(self, a: int, b: int, result: Planes) -> None:
        i, spans = self._unpacked, self.spans
        there = self.anywhere
        pieces = []
        sign, mask = signs_and_mask(result) if self.in_place else (0, 0)
        while i < len(spans):
            start, stop = spans[i]
            if start >= b and start < stop:
                break
            low, high = max(a, start), min(b, stop)
            if there[i] and low <= high:
                grad = self.aggregator.slots[i].grad
                if (
                    self.in_place
                    and grad is not None
                    and grad.is_contiguous()
                    and not grad.is_neg()
                ):
                    first, n = 8 * (low - start), grad.numel()
                    n = min(8 * (high - low), n - first)
                    to = grad.data_ptr() + first * grad.element_size()
                    at = low - a
                    piece = sign + at, mask and mask + at, n, _CODES[grad.dtype], to
                    pieces.append(piece)
                else:
                    self.put(i, low - start, result[:, low - a : high - a])
            if stop > b:
                break
            i += 1
        if pieces:
            unpack_pieces(pieces)
        self._unpacked = i

    def valid_bits(self, at: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        starts = np.array(self.aggregator.bucket.offsets)
        lengths = np.array(self.aggregator.bucket.lengths)
        slot = np.searchsorted(starts, at, side="right") - 1  # behind tensors without coordinates
        return np.clip(lengths[slot] - 8 * (at - starts[slot]), 0, 8)

    def put(self, i: int, first: int, votes: Planes) -> None:
        """Votes (kd, n) from byte ``first`` on as the gradient of slot ``i``."""
        slot = self.aggregator.slots[i]
        grad = slot.target()
        if grad.is_contiguous():
            flat = grad.view(-1)[8 * first : 8 * (first + votes.shape[1])]
            planes.unpack(_rows(votes), out=flat)
            return
        shape = (len(votes), planes.plane_bytes(grad.numel()))
        whole = self._pieces.setdefault(i, arrays.empty(shape, "uint8", like=self.like))
        whole[:, first : first + votes.shape[1]] = votes
        if first + votes.shape[1] == shape[1]:
            dense = torch.empty(grad.shape, dtype=grad.dtype, device=grad.device)
            grad.copy_(planes.unpack(_rows(whole), out=dense))
            slot.version = grad._version
            del self._pieces[i]


class VoteAggregator(Aggregator):
    """The vote of all ranks, +1, -1, or 0 where ``ties="zero"``, by any voting algorithm."""

    task_type: type[BucketTask] = BucketTask

    def __init__(
        self, bucket: GradientBucket, rank: int, size: int, groups: Partition | None
    ) -> None:
        super().__init__(bucket, rank, size, groups)
        inner = getattr(self.compressor, "inner", None)
        self._restarts = groups is not None and hasattr(inner, "momentum_dtype")
        first = self.slots[0].parameter.detach()
        # On a GPU planes are packed, sent and unpacked there, over the transport for its memory.
        like = None if first.device.type == "cpu" else arrays.view("step", "gradient", first)
        self.task = self.task_type(self, like)
        self._plan: Plan | None = None
        self._planned: Any = None  # what of a header the plan is for
        self._anywhere: Any = None

    def begin(self, header: Header, message: int) -> None:
        super().begin(header, message)
        task = self.task
        header.weight = 0.0 if self.absent else 1.0
        task.reset(header.seed, header.step)
        if self._restarts:
            assert self.groups is not None
            restart_momenta(self.slots, self.groups)
        if task.like is not None:
            header.device = task.like.device.partition(":")[0]
        if not self._fits(header):
            self._report(header, message)

    def _fits(self, header: Header) -> bool:
        terms = header.terms(), header.presence
        if self.present is not None:  # other weights than in the last step
            return False
        return self._plan is not None and self._planned == terms and not header.fresh

    def _report(self, header: Header, message: int) -> None:
        # A header with a count from a GPU would wait for the device before it is sent.
        late = self.task.like is not None or not self.task.short(message)
        if late and not header.byzantine_f:
            header.nan_count_pending = True
            return
        self.task.pack_until(self.task.nbytes)
        header.nans = int(self.task.nans)

    def planned(
        self, engine: Engine, wire: TaggedTransport, header: Header, number: int
    ) -> Steps[bool]:
        if self._plan is None or not self._fits(header) or wire.size > SHORT_ABOVE:
            return False
        self.task.anywhere = self._anywhere
        if self.task.short(wire.transport.message):
            self.task.pack_whole()  # a NaN is found before anything is unpacked
        same = yield from self._plan.run(engine, wire, number, header.step, header.settings)
        if same:
            self._complete()
        else:
            self._report(header, wire.transport.message)
        return same

    def steps(
        self, engine: Engine, wire: TaggedTransport, agreed: Agreed, number: int, anywhere: Any
    ) -> Steps[None]:
        self.task.anywhere = self._anywhere = anywhere
        plan, self._plan = self._plan, None
        used = yield from vote(engine, wire, self.task, agreed, number, plan)
        if plan is not None and plan is not used:
            plan.free()
        self._plan, self._planned = used, (agreed.header.terms(), agreed.header.presence)
        self._complete()

    def free(self) -> None:
        if self._plan is not None:
            self._plan.free()
            self._plan = None

    def _complete(self) -> None:
        """Called once the whole result is unpacked."""


def pack_slots(aggregator: Aggregator, first: int, last: int, out: Any) -> Any:
    """Slots [first, last) of a bucket into its planes ``out`` (k, B); the NaNs, as ``pack``'s."""
    c, context, bucket = aggregator.compressor, aggregator.context, aggregator.bucket
    nans: Any = 0
    there = []
    for i in range(first, last):
        s = aggregator.slots[i]
        if s.grad is not None:
            there.append(i)
            continue
        if aggregator.masked:
            out[:, bucket.span(i)] = 0
            continue
        _, _, found = planes.pack_census(
            c.compress_missing(s.parameter, s.state),
            zeros=c.zeros,
            nan=c.nan,
            seed=context.seed,
            step=context.step,
            rank=context.rank,
            offset=8 * bucket.offsets[i],
            out=_rows(out[:, bucket.span(i)]),
        )
        nans += found if s.parameter.is_cuda else int(found)
    slots = [aggregator.slots[i] for i in there]
    grads: list[Any] = [s.grad for s in slots]
    offsets = [bucket.offsets[i] for i in there]
    nans += c.pack(grads, [s.state for s in slots], _rows(out), offsets, context)
    if aggregator.masked:
        silence_zeros(grads, out, offsets)
    return nans


def _rows(x: Any) -> Any:
    """Planes (k, b) as the kernels take them: a plane alone as (b,)."""
    return x if len(x) == 2 else x[0]
