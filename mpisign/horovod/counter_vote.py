"""Votes as counters that Horovod's own allreduce sums, also where ranks call ``hvd.join``."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import horovod.torch as hvd
import numpy as np
import torch

from mpisign import census, planes, policies, tracing
from mpisign.backend import arrays
from mpisign.compressors import COMPRESSORS, Detox, NoisySign, Sign, Sparsign, StochasticSign
from mpisign.compressors.base import Compressor, PackContext, State
from mpisign.errors import NaNError, WireError
from mpisign.exchange.aggregators.masked import silence_zeros
from mpisign.exchange.arguments import check_warmup
from mpisign.exchange.embeddings import Embeddings
from mpisign.exchange.optimizer_options import options_of_steppers
from mpisign.exchange.optimizer_steps import call_on_every_rank
from mpisign.exchange.parameter_slot import ParameterSlot
from mpisign.exchange.pending_step import ChangedVotes, PendingStep
from mpisign.exchange.trace_steps import trace_steps
from mpisign.horovod import roll_call
from mpisign.horovod.count_bytes import count_ring
from mpisign.horovod.process_set_engine import elastic, ranks_of
from mpisign.horovod.slots import named_by_optimizers, optimizers_of
from mpisign.horovod.vote import WRITES, VoteCompression
from mpisign.planes import counters
from mpisign.stats import stage, stats

_STATELESS = (Sign, Sparsign, NoisySign, StochasticSign)
_WARM = "warm_up"  # of a slot's state: steps of warm-up taken
_COUNTED = ("vote", "gathered_vote")  # aggregates that counts of votes determine

_CLOCKS = 1 << 16  # gradients after which the clock begins anew
_STOP = 1 << 31  # added to the clock by a rank that asks to stop; more than all clocks together


@dataclass
class _Sent:
    """One gradient on its way: its shape as a meta tensor, its device, the number of ranks.

    ``again``: the gradient itself, where it is the vote already. ``compressor``: what it was voted
    on with.
    """

    like: torch.Tensor
    device: torch.device
    size: int
    slot: ParameterSlot | None
    again: torch.Tensor | None
    compressor: Compressor
    step: int
    start: float  # of the exchange


@dataclass
class _Averaging:
    """One gradient on its way in warm-up. ``own``: None where no backward pass computed it."""

    grad: torch.Tensor
    own: torch.Tensor | None
    slot: ParameterSlot


class CounterVote(VoteCompression):
    """The compression without named parameters: 64 / digits(p) bits per coordinate, 3.05 at p = 4.

    Wire, float64 in one allreduce per gradient: roll call (``roll_call``; its clock is the number
    of the gradient mod 2^16, and 2^31 more of a rank that asks to stop), counters of negative
    votes, and under zeros="abstain" or nan="abstain" counters of votes cast. Exact under op=Average
    (with any predivide factor) and op=Sum. Ranks that have called ``hvd.join`` do not vote. The
    weights of ``nn.Embedding`` abstain where their gradient is zero.

    Args:
        compressor: one that votes; any other is for ``mpisign.horovod.DistributedOptimizer``.
        seed: of the random bits for zeros and ties, equal on all ranks.
        process_set: the optimizer's.
        changed_votes: as in ``mpisign.horovod.DistributedOptimizer``.
        warmup_steps: of each parameter: steps in which Horovod averages its gradient in float32.

    Raises:
        NaNError, DisagreementError: from ``step()``, the same on every rank.
        CollectiveError: from ``step()``, on every rank, if one has a gradient of another dtype.
        WireError: from ``step()``, if the reduction was neither a sum nor a mean.
        TypeError: from ``backward()``, for a compressor whose aggregate is no count of votes.

    Example:
        >>> import horovod.torch as hvd
        >>> hvd.init()
        >>> vote = CounterVote(Sign())
        >>> vote.decompress(*vote.compress(torch.tensor([5.0, -3.0, 0.1])))
        tensor([ 1., -1.,  1.])
    """

    def __init__(
        self,
        compressor: Compressor,
        *,
        seed: int = 0,
        process_set: hvd.ProcessSet = hvd.global_process_set,
        changed_votes: ChangedVotes = "raise",
        warmup_steps: int = 0,
    ) -> None:
        super().__init__(compressor, seed=seed, process_set=process_set)
        self.pending = PendingStep("mpisign.horovod.Compression", changed_votes)
        self._found = False  # whether optimizers that hold this were looked for
        self._options = options_of_steppers(compressor, [])
        self._warmup_steps = check_warmup("mpisign.horovod.Compression", warmup_steps)
        self._embeddings = Embeddings()
        self._strangers: set[tuple[int, ...]] = set()  # shapes of tensors of no parameter
        trace_steps()

    def compress(self, tensor: torch.Tensor) -> tuple[torch.Tensor, _Sent | _Averaging]:
        c = self.compressor
        if c.aggregate not in _COUNTED or isinstance(c, Detox):
            names = {kind: name for name, kind in COMPRESSORS.items()}
            name = names.get(type(c), type(c).__name__)
            raise TypeError(
                f"Compression.{name}: Horovod's allreduce cannot count what it sends. Give it the "
                f"parameters, Compression.{name}(model.named_parameters()), or use "
                "mpisign.horovod.DistributedOptimizer"
            )
        self._check(tensor)
        size, rank, length = self._size(), self.process_set.rank(), tensor.numel()
        head, width = roll_call.n_words(size), counters.n_words(length, size)
        slot, fits = self._slot_of(tensor), _fits(tensor)
        again = slot is not None and self.pending.holds([slot])
        self._begin(slot, again)
        warm = slot is None or slot.state.get(_WARM, 0) >= self._warmup_steps
        if slot is not None and fits and not (warm or again):
            self.step += 1
            own = None if self._is_made_up(tensor) else tensor
            return tensor.detach().to(torch.float32, copy=True), _Averaging(tensor, own, slot)
        embedding = self._is_embedding(tensor, slot)
        c = self._own_of(slot)
        if embedding:
            c = c.abstaining()
        k = policies.planes_up(c.zeros, c.nan)
        payload = torch.empty(head + k * width, dtype=torch.float64)
        words = payload.numpy()
        with stage("pack"):
            ballots = torch.zeros(k, planes.plane_bytes(length), dtype=torch.uint8)
            rows = ballots if k == 2 else ballots[0]
            nans = 0
            if fits:  # else the roll call tells all ranks
                nans = self._pack(c, tensor, slot, rows, rank, again)
            if fits and embedding and c.remembers:
                silence_zeros([tensor.detach().cpu()], ballots, [0])
            for i, plane in enumerate(ballots.numpy()):
                at = head + i * width
                counters.encode(plane, length, size, out=words[at : at + width])
        roll_call.write(
            words[:head],
            rank,
            size,
            clock=self.step % _CLOCKS + self.stop.asking * _STOP,
            config_digest=f"counters {length} {size} {self.seed} {c!r} {self._options} {again}",
            nan=nans > 0 and c.nan == "raise",
            unfit=not fits,
        )
        step, self.step = self.step, self.step + 1
        if fits and census.every and step % census.every == 0:
            stats().votes.add_gradient(tensor)
        count_ring(words.nbytes, size)
        like = torch.empty_like(tensor, device="meta")
        own = tensor if again else None
        return payload, _Sent(like, tensor.device, size, slot, own, c, step, time.perf_counter())

    def decompress(self, tensor: torch.Tensor, ctx: _Sent | _Averaging | None) -> torch.Tensor:
        if ctx is None:
            self._refuse_sparse()
        if isinstance(ctx, _Averaging):
            return self._average(tensor, ctx)
        c, like, device, size = ctx.compressor, ctx.like, ctx.device, ctx.size
        if tracing.trace is not None:
            name = "a gradient" if ctx.slot is None else ctx.slot.name
            tracing.trace.exchanged(name, ctx.start, coordinates=like.numel())
        where = f"Compression (a gradient of shape {tuple(like.shape)})"
        words = tensor.detach().cpu().numpy()
        head, width = roll_call.n_words(size), counters.n_words(like.numel(), size)
        roll = roll_call.read(words[:head], size, where)
        roll_call.check(roll, where, ranks_of(self.process_set))
        self.pending.averaged = self.pending.averaged and ctx.again is not None
        if stops := roll.clock // _STOP:
            self.stop.carried()
            words[roll_call.CLOCK] -= stops * _STOP / roll.unscale  # ties fall as without it
        words[roll_call.CONFIG] = 0  # nor by what ranks have found out of each other since a start
        if ctx.slot is not None:
            self.pending.hand_out(WRITES, [ctx.slot])
        if ctx.again is not None:
            return ctx.again
        abstentions = policies.planes_up(c.zeros, c.nan) == 2
        tied = c.ties == "random" and (abstentions or len(roll.voters) % 2 == 0)
        with stage("vote"):
            result, bad = counters.decode(
                words[head : head + width],
                words[head + width :] if abstentions else None,
                like.numel(),
                size,
                len(roll.voters),
                unscale=roll.unscale,
                ties=c.ties,
                # Ranks share no name and no count of calls here, only the reduced words.
                seed=counters.seed_of(words, roll.unscale, self.seed) if tied else 0,
            )
        if bad:
            raise WireError(f"{where}: {bad} reduced words are no sum of votes")
        if census.every and ctx.step % census.every == 0:
            of = like.numel(), size, roll.unscale, census.COORDINATES
            minus = counters.sampled(words[head : head + width], *of)
            cast = np.full_like(minus, len(roll.voters))
            if abstentions:
                cast = counters.sampled(words[head + width :], *of)
            stats().votes.add_counts(cast - 2 * minus, cast, [1] * size)
        with stage("unpack"):
            rows = torch.from_numpy(result)
            vote = torch.empty(like.shape, dtype=like.dtype)
            planes.unpack(rows if len(rows) == 2 else rows[0], out=vote)
            if like.is_contiguous():
                return vote.to(device)
            return torch.empty_like(like, device=device).copy_(vote)

    def _average(self, mean: torch.Tensor, ctx: _Averaging) -> torch.Tensor:
        """The end of a step of warm-up."""
        slot = ctx.slot
        if self.compressor.nan == "raise" and bool(mean.isnan().any()):
            raise NaNError(
                f"Compression: {slot.name!r}: gradients must hold no NaN under nan='raise', but "
                "their mean does"
            )
        self._own_of(slot).warm_up(ctx.own, mean, slot.state)
        slot.state[_WARM] = slot.state.get(_WARM, 0) + 1
        self.pending.averaged = True
        self.pending.hand_out(WRITES, [slot])
        return mean.to(ctx.grad.dtype)

    def _begin(self, slot: ParameterSlot | None, again: bool) -> None:
        """Begins the exchange of one gradient, and with the first one a step."""
        if again:
            return
        if self.pending.handed_out:
            if self.pending.settle():
                self.step = self._begun
            self._begun = self.step
            # A rank that has just joined an elastic job has seen no optimizer step.
            steppers = [] if elastic() else self.pending.take_steppers()
            self._options = options_of_steppers(self.compressor, steppers)
        if slot is not None:
            self.pending.begin([slot])

    def _pack(
        self,
        c: Compressor,
        tensor: torch.Tensor,
        slot: ParameterSlot | None,
        out: Any,
        rank: int,
        again: bool,
    ) -> int:
        """Packs this rank's vote into ``out``, (B,) or (2, B); returns the number of NaNs."""
        context = PackContext(self.seed, self.step, rank)
        state: State = {} if slot is None else slot.state
        missing = not again and slot is not None and bool(state) and self._is_made_up(tensor)
        if c.aggregate == "gathered_vote":  # whose state is in host memory, if it keeps any
            tensor, missing = tensor.detach().cpu(), False  # where no gradient is one of zeros
        if tensor.device.type == "cpu" and not (missing or again):
            return int(c.pack([tensor], [state], out, [0], context))
        if again:  # as every rank has it: what is counted does not matter
            voted = tensor.detach()
        elif missing:
            assert slot is not None
            voted = c.compress_missing(slot.parameter.detach(), state)
        else:
            voted = c.pre_sign(c.compress(tensor, state), context, 0).detach()
        _, _, nans = planes.pack_census(
            voted.cpu(), zeros=c.zeros, nan=c.nan, offset=0, out=out, **context.keys
        )
        return int(nans)

    def _slot_of(self, tensor: torch.Tensor) -> ParameterSlot | None:
        slot = self.slots.find(tensor)
        new = tensor.dim() == 2 and tuple(tensor.shape) not in self._strangers
        if slot is None and (new or not self._found):
            self._find()
            slot = self.slots.find(tensor)
            if slot is None and self.slots.sparse_of(tensor.shape) is None:
                self._strangers.add(tuple(tensor.shape))  # of hvd.allreduce, called directly
        if slot is None and not (self._found and not self._warmup_steps):
            raise TypeError(
                f"{type(self.compressor).__name__}: this tensor is no parameter's .grad, so its "
                "momentum, or step of warm-up, cannot be found (sparse_as_dense=True, or "
                "hvd.allreduce called directly). Use Compression.sign, or give this the "
                "model.named_parameters(), with dense gradients"
            )
        return slot

    def _own_of(self, slot: ParameterSlot | None) -> Compressor:
        c = self.compressor
        if slot is None:
            return c
        is_embedding = partial(self._embeddings.has, slot.name, slot.parameter)
        return c.of_parameter(slot.name, slot.parameter, is_embedding)

    def _is_embedding(self, tensor: torch.Tensor, slot: ParameterSlot | None) -> bool:
        if slot is None and tensor.dim() == 2:  # sparse_as_dense: the gradient is a copy
            slot = self.slots.sparse_of(tensor.shape)
        return slot is not None and self._embeddings.has(slot.name, slot.parameter)

    def _find(self) -> None:
        """Looks for the optimizers that hold this compression, and for their parameters."""
        for optimizer in optimizers_of(self):
            call_on_every_rank(optimizer)
        known = {id(s) for s in self.slots.all}
        new = [s for s in self.slots.add(named_by_optimizers(self)) if id(s) not in known]
        self.pending.watch(new, self.compressor)
        self._embeddings = Embeddings()
        self._found = isinstance(self.compressor, _STATELESS)  # those may go without


def _fits(tensor: torch.Tensor) -> bool:
    try:
        arrays.view_floats("Compression", "gradient", tensor.detach())
    except TypeError:
        return False
    return True
