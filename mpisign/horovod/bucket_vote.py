"""What gradients become in one or more buckets, over Horovod's alltoall and allgather."""

from __future__ import annotations

import functools
import gc
import os
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import horovod.torch as hvd
import numpy as np
import torch

from mpisign.compressors.base import Compressor, State
from mpisign.engine.engine import Engine, check_every
from mpisign.engine.progress import ProgressEngine
from mpisign.errors import CollectiveError, DisagreementError
from mpisign.exchange.buckets import BucketLayout
from mpisign.exchange.gradient_exchange import GradientExchange
from mpisign.exchange.parameter_slot import ParameterSlot
from mpisign.exchange.skip import Rule
from mpisign.horovod import roll_call
from mpisign.horovod.members import named_by_optimizers, optimizers_of
from mpisign.horovod.vote import VoteCompression
from mpisign.stats import stats
from mpisign.transports.horovod import HorovodTransport

_FUNCTION = "Compression(named_parameters)"


@dataclass
class _Round:
    """One step: who is in it, then whether it is over or why it failed."""

    packed: set[str] = field(default_factory=set)
    roll: bytes = b""  # as it came back
    done: bool = False
    clock: int = 0
    error: Exception | None = None

    @property
    def over(self) -> bool:
        """True once all gradients are aggregated or that has failed."""
        return self.done or self.error is not None


@dataclass(frozen=True)
class _Context:
    round: _Round
    member: ParameterSlot
    grad: torch.Tensor


class BucketVote(VoteCompression):
    """``compression=`` given named parameters: for votes 2 (1 - 1/p) bits per coordinate each way.

    ``compress`` notes a gradient and hands Horovod a roll call to sum. Horovod has submitted every
    gradient before it asks for the first result, so the first ``decompress`` of a step finds them
    all and has them exchanged, by the round of the compressor. Not earlier: a rank that has called
    ``hvd.join`` shows in the roll call only, and Horovod does not survive its absence from an
    alltoall. Learning rates, for compressors that ask, are those of the optimizer that holds this.

    Raises, the same on every rank: NaNError, DisagreementError, WireError; CollectiveError if a
    rank has joined. TypeError for a tensor that is no named parameter's gradient.
    """

    def __init__(
        self,
        compressor: Compressor,
        named_parameters: Iterable[tuple[str, torch.Tensor]],
        *,
        seed: int = 0,
        process_set: hvd.ProcessSet = hvd.global_process_set,
        skip: str | Rule | None = "auto",
    ) -> None:
        super().__init__(compressor, seed=seed, process_set=process_set)
        if compressor.local_steps > 1:
            raise ValueError(
                f"{_FUNCTION}: local_steps must be 1 under hvd.DistributedOptimizer, which "
                "exchanges in every step: take mpisign.horovod.DistributedOptimizer"
            )
        named = sorted(_checked(named_parameters), key=lambda pair: pair[0])
        self._own = {name: ParameterSlot(name, p) for name, p in named}
        bucket = BucketLayout([p.numel() for _, p in named])
        self._identity = bucket.identity([name for name, _ in named])
        self._exchange = GradientExchange(
            _FUNCTION,
            lambda: self._engine_now(f"{self._identity:x}"),  # two optimizers' never meet
            list(self._own.values()),
            compressor,
            skip=skip,
            seed=seed,
            replicas=False,
        )
        self._round: _Round | None = None
        self._engine: Engine | None = None
        self._optimizer: weakref.ref[torch.optim.Optimizer] | None = None
        self._complete = False
        self.members.add(named)

    def compress(self, tensor: torch.Tensor) -> tuple[torch.Tensor, _Context]:
        like, size, rank = self._like(tensor), self._size(), self.process_set.rank()
        if not self._complete or (self._optimizer is not None and self._optimizer() is None):
            self._check_complete()
        found = self.members.find(tensor)
        if found is None:
            raise TypeError(
                f"{_FUNCTION}: a tensor of shape {like.shape} is the gradient of none of the named "
                "parameters. With sparse_as_dense=True or hvd.allreduce use the compression "
                "without named_parameters"
            )
        name, now = found.name, self._round
        if now is None or now.over or name in now.packed:
            now = self._round = _Round()
        member = self._own[name]
        member.grad, member.state = tensor, found.state
        now.packed.add(name)
        placeholder = torch.empty(roll_call.n_words(size), dtype=torch.float64)
        roll_call.write(
            placeholder.numpy(),
            rank,
            size,
            clock=self.step,
            creed=f"bucket {self._identity} {size} {self.seed} {self.compressor!r} "
            f"{check_every()} {self._plan()}",
        )
        ring = 2 * (size - 1) * placeholder.numel() * placeholder.element_size() // size
        stats().add("exchange", calls=0, sent=ring, received=ring)
        return placeholder, _Context(now, member, tensor)

    def decompress(self, tensor: torch.Tensor, ctx: _Context | None) -> torch.Tensor:
        if ctx is None:
            self._refuse_sparse()
        now = ctx.round
        if now.error is not None:
            raise now.error
        words = tensor.detach().cpu().numpy()
        if not now.done:
            try:
                self._aggregate(now, words)
            except Exception as error:
                now.error = error
                raise
        if words.tobytes() != now.roll:
            where = f"{_FUNCTION}, {ctx.member.name!r}"
            roll = roll_call.read(words, self._size(), where)
            roll_call.check(roll, where, self._ranks())
            if roll.clock != now.clock:
                raise DisagreementError(
                    f"{where}: ranks hold this vote in different steps: one compression for each "
                    "optimizer, and steps in the same order on all ranks"
                )
            now.roll = words.tobytes()
        return ctx.grad

    def load_state_dict(self, states: dict[str, State]) -> None:
        super().load_state_dict(states)
        self._round = None

    def _check_complete(self) -> None:
        # Before anything is sent: a rank that raised at the first stranger would leave others,
        # who reach their parameters in another order, with half of their gradients under way.
        known = {id(m.parameter) for m in self._own.values()}
        optimizers = named_by_optimizers(self)
        held_by = optimizers_of(self)
        if len(held_by) > 1:
            gc.collect()  # one that was given up may still be there
            held_by = optimizers_of(self)
        if len(held_by) > 1:
            raise TypeError(
                f"{_FUNCTION}: one optimizer for each compression: two would mix their votes"
            )
        strangers = [name for name, p in optimizers if p.requires_grad and id(p) not in known]
        if strangers:
            raise TypeError(
                f"{_FUNCTION}: named_parameters must name every parameter of the optimizer, "
                f"got none for {', '.join(map(repr, sorted(strangers)))}"
            )
        self._optimizer = weakref.ref(held_by[0]) if held_by else None
        self._complete = True

    def _plan(self) -> list[int]:
        """The buckets: ranks that cut them otherwise must not begin."""
        return [bucket.tensor for bucket in self._exchange.buckets]

    def _aggregate(self, now: _Round, words: np.ndarray[Any, Any]) -> None:
        size, ranks = self._size(), self._ranks()
        roll = roll_call.read(words, size, _FUNCTION)
        if roll.joined:
            held = ", ".join(str(ranks[r]) for r in roll.joined)
            raise CollectiveError(
                f"{_FUNCTION}: rank{'s' if len(roll.joined) > 1 else ''} {held} called hvd.join, "
                "which Horovod's alltoall cannot do without. Use the compression without "
                "named_parameters (Compression.sign), whose votes allow for joined ranks"
            )
        self.step = roll.clock // size + 1
        now.clock, now.roll = roll.clock, words.tobytes()
        exchange = self._exchange
        exchange.steps = roll.clock // size
        exchange.optimizer = None if self._optimizer is None else self._optimizer()
        for m in self._own.values():
            if m.name not in now.packed:
                m.grad = None
        try:
            if not roll.agreed:
                engine = self._engine_now("headers")  # one name, whatever the buckets
                engine.submit(_FUNCTION, functools.partial(exchange.agree, engine)).wait()
                roll_call.check_creed(roll, _FUNCTION)
            exchange.flush()
            exchange.finish()
        finally:
            exchange.optimizer = None
            if self._engine is not None and self._engine.progress.broken is not None:
                self._engine = None  # elastic training goes on, with another
        for m in self._own.values():
            m.grad = None
        now.done = True

    def _engine_now(self, topic: str) -> Engine:
        """This job's engine; a new one after elastic training changed the ranks."""
        transport = None if self._engine is None else self._engine.transport
        now = (self.process_set.rank(), self._size())
        if transport is None or (transport.rank, transport.size) != now:
            self._engine = Engine(HorovodTransport("mpisign", self.process_set))
            if os.environ.get("HOROVOD_ELASTIC") == "1":
                # A rank that has just come knows no digest of the last result.
                self._engine.check_every = 0
        engine = self._engine
        assert engine is not None
        assert isinstance(engine.transport, HorovodTransport)
        engine.transport.restart(topic)
        # Each vote is the first of its queue, for a rank that has just come has counted none.
        engine.progress = ProgressEngine(engine.transport, engine.progress.timeout)
        return engine


def _checked(named_parameters: Iterable[Any]) -> list[tuple[str, torch.Tensor]]:
    named = list(named_parameters)
    for pair in named:
        fits = isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)
        if not fits or not isinstance(pair[1], torch.Tensor):
            raise TypeError(
                f"{_FUNCTION}: named_parameters must hold (name, parameter) pairs as "
                f"model.named_parameters() does, got {type(pair).__name__}"
            )
    names = [name for name, _ in named]
    if not names or len(set(names)) < len(names):
        doubles = sorted({n for n in names if names.count(n) > 1})
        raise ValueError(
            f"{_FUNCTION}: named_parameters must be at least one and uniquely named, "
            f"got {f'{doubles} twice' if names else 'none'}"
        )
    return named
