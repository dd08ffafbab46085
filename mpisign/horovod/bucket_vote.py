"""Gradients exchanged in buckets, over Horovod's alltoall and allgather."""

from __future__ import annotations

import functools
import gc
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import horovod.torch as hvd
import numpy as np
import torch

from mpisign.compressors.accordion import Accordion
from mpisign.compressors.base import Compressor, State
from mpisign.engine.agreement import name_ranks
from mpisign.engine.replicas import check_every
from mpisign.errors import CollectiveError, DisagreementError
from mpisign.exchange.arguments import named_pairs
from mpisign.exchange.buckets import BucketLayout
from mpisign.exchange.gradient_exchange import GradientExchange
from mpisign.exchange.optimizer_steps import call_on_every_rank
from mpisign.exchange.parameter_slot import ParameterSlot
from mpisign.exchange.pending_step import ChangedVotes
from mpisign.exchange.skip import Rule
from mpisign.horovod import roll_call
from mpisign.horovod.count_bytes import count_ring
from mpisign.horovod.process_set_engine import ProcessSetEngine, elastic, ranks_of
from mpisign.horovod.slots import named_by_optimizers, optimizers_of
from mpisign.horovod.vote import WRITES, VoteCompression

_FUNCTION = "Compression(named_parameters)"


@dataclass
class _StepState:
    """One step: the parameters that have a gradient, then its end or its error."""

    packed: dict[str, torch.Tensor] = field(default_factory=dict)
    again: bool = True  # all gradients are votes already
    roll: bytes = b""  # the reduced roll call
    clock: int = 0
    done: bool = False
    error: Exception | None = None


_BucketContext = tuple[_StepState, ParameterSlot, torch.Tensor]  # with the gradient


class BucketVote(VoteCompression):
    """The compression with named parameters: votes take 2 (1 - 1/p) bits per coordinate each way.

    ``compress`` notes a gradient and gives Horovod a roll call to sum. Horovod has submitted every
    gradient before it asks for the first result, so the first ``decompress`` of a step finds them
    all and exchanges them. It cannot begin earlier: only the roll call shows that a rank has called
    ``hvd.join``, and Horovod crashes in an alltoall without that rank. Learning rates, for
    compressors that use them, are those of the optimizer that holds this compression.

    Args:
        compressor: any Compressor without local steps.
        named_parameters: all of the optimizer's, as ``model.named_parameters()``.
        seed: of the random bits for zeros and ties, equal on all ranks.
        process_set: the optimizer's.
        skip, warmup_steps: as in ``mpisign.DistributedOptimizer``.
        changed_votes: as in ``mpisign.horovod.DistributedOptimizer``.

    Raises:
        TypeError, ValueError: for invalid arguments; from ``backward()`` for a tensor that is not
            the gradient of a named parameter.
        NaNError, DisagreementError, WireError: from ``step()``, the same on every rank.
        CollectiveError: from ``step()``, on every rank, if a rank has called ``hvd.join``.

    Example:
        >>> hvd.init()
        >>> from mpisign.compressors import Sign
        >>> model = torch.nn.Linear(3, 1, bias=False)
        >>> vote = BucketVote(Sign(), model.named_parameters())
        >>> model(torch.tensor([[5.0, -3.0, 0.1]])).sum().backward()
        >>> vote.decompress(*vote.compress(model.weight.grad))
        tensor([[ 1., -1.,  1.]])
    """

    _slots_of: ClassVar[type[ParameterSlot]] = ParameterSlot

    def __init__(
        self,
        compressor: Compressor,
        named_parameters: Iterable[tuple[str, torch.Tensor]],
        *,
        seed: int = 0,
        process_set: hvd.ProcessSet = hvd.global_process_set,
        skip: str | Rule | None = "auto",
        changed_votes: ChangedVotes = "raise",
        warmup_steps: int = 0,
    ) -> None:
        super().__init__(compressor, seed=seed, process_set=process_set)
        if compressor.local_steps > 1:
            raise ValueError(
                f"{_FUNCTION}: local_steps must be 1 under hvd.DistributedOptimizer, which "
                "exchanges in every step: take mpisign.horovod.DistributedOptimizer"
            )
        if isinstance(compressor, Accordion) and elastic():
            raise ValueError(
                f"{_FUNCTION}: Accordion cannot be combined with elastic training: a rank that "
                "joins does not know the norms by which the others decide"
            )
        named = sorted(named_pairs(_FUNCTION, named_parameters), key=lambda pair: pair[0])
        if not named:
            raise ValueError(
                f"{_FUNCTION}: named_parameters must be at least one and uniquely named, got none"
            )
        bucket = BucketLayout([p.numel() for _, p in named])
        self._identity = bucket.identity([name for name, _ in named])
        self._engine = ProcessSetEngine(process_set, "mpisign")
        self._exchange = GradientExchange(
            _FUNCTION,
            # Two optimizers have different identities, so that their exchanges never mix.
            lambda: self._engine.restarted(f"{self._identity:x}"),
            self.slots.add(named),
            compressor,
            skip=skip,
            seed=seed,
            warmup_steps=warmup_steps,
            replicas=False,
            newcomers=lambda: self._first and not elastic(),
            ahead=True,
            changed_votes=changed_votes,
        )
        self.pending = self._exchange.pending
        self._first = True  # of all steps, in which parameters are compared
        self._step_state: _StepState | None = None
        self._optimizer: weakref.ref[torch.optim.Optimizer] | None = None
        self._complete = False

    def compress(self, tensor: torch.Tensor) -> tuple[torch.Tensor, _BucketContext]:
        self._check(tensor)
        size, rank = self._size(), self.process_set.rank()
        if not self._complete or (self._optimizer is not None and self._optimizer() is None):
            self._check_complete()
        slot = self.slots.find(tensor)
        if slot is None:
            raise TypeError(
                f"{_FUNCTION}: a tensor of shape {tuple(tensor.shape)} is the gradient of none of "
                "the named parameters. With sparse_as_dense=True or hvd.allreduce use the "
                "compression without named_parameters"
            )
        now = self._step_state
        if now is None or now.done or now.error is not None or slot.name in now.packed:
            now = self._step_state = _StepState()
            # Where synchronize() is called again all of them are votes already.
            if not self.pending.holds([slot]) and self._exchange.settle():
                self.step = self._begun
            self._begun = self.step
            self._choose()
        again = self.pending.holds([slot])
        now.again = now.again and again
        slot.grad = None if self._is_made_up(tensor) else tensor
        now.packed[slot.name] = tensor
        placeholder = torch.empty(roll_call.n_words(size), dtype=torch.float64)
        plan = [bucket.tensor for bucket in self._exchange.buckets]  # equal on all ranks
        roll_call.write(
            placeholder.numpy(),
            rank,
            size,
            clock=self.step,
            config_digest=f"bucket {self._identity} {size} {self.seed} {self.compressor!r} "
            f"{check_every()} {plan} {again} {self._exchange.warmup_steps}",
        )
        count_ring(placeholder.numel() * placeholder.element_size(), size, calls=0)
        return placeholder, (now, slot, tensor)

    def decompress(self, tensor: torch.Tensor, ctx: _BucketContext | None) -> torch.Tensor:
        if ctx is None:
            self._refuse_sparse()
        now, slot, grad = ctx
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
            where = f"{_FUNCTION}, {slot.name!r}"
            roll = roll_call.read(words, self._size(), where)
            roll_call.check(roll, where, ranks_of(self.process_set))
            if roll.clock != now.clock:
                raise DisagreementError(
                    f"{where}: ranks are at different steps: use one compression for each "
                    "optimizer, and take steps in the same order on all ranks"
                )
            now.roll = words.tobytes()
        return grad

    def next_epoch(self) -> dict[str, str]:
        """Ends an epoch of ``Compression.accordion``: see ``mpisign.next_epoch``.

        Returns:
            What each parameter sends from now on, "high" or "low", by name.
        """
        if self._exchange.settle():
            self.step = self._begun
        found: dict[str, str] = self._at_step(self._exchange.next_epoch)
        return found

    def _choose(self) -> None:
        """Accordion's buckets of the step that begins, which its roll call names."""
        if not self.pending.holds(self._exchange.slots):
            self._at_step(self._exchange.begin_step)

    def _at_step(self, act: Callable[[], Any]) -> Any:
        exchange = self._exchange
        if exchange.regimes is None:
            return {}
        if not self._complete:
            self._check_complete()  # finds the optimizer, whose learning rates count
        exchange.steps = self.step
        exchange.optimizer = None if self._optimizer is None else self._optimizer()
        try:
            return act()
        finally:
            exchange.optimizer = None

    def load_state_dict(self, states: dict[str, State]) -> None:
        super().load_state_dict(states)
        self._step_state = None

    def _check_complete(self) -> None:
        # Before anything is sent: ranks reach their parameters in different orders, and a rank that
        # raised at the first unknown one would leave the others with half of theirs in flight.
        optimizers = named_by_optimizers(self)
        held_by = optimizers_of(self)
        if len(held_by) > 1:
            gc.collect()  # one that is no longer in use may not have been freed yet
            held_by = optimizers_of(self)
        if len(held_by) > 1:
            raise TypeError(
                f"{_FUNCTION}: one optimizer for each compression: two would mix their votes"
            )
        known = {id(m.parameter) for m in self._exchange.slots}
        unknown = [name for name, p in optimizers if p.requires_grad and id(p) not in known]
        if unknown:
            raise TypeError(
                f"{_FUNCTION}: named_parameters must name every parameter of the optimizer, "
                f"got none for {', '.join(map(repr, sorted(unknown)))}"
            )
        self._optimizer = weakref.ref(held_by[0]) if held_by else None
        for optimizer in held_by:
            call_on_every_rank(optimizer)
        self._complete = True

    def _aggregate(self, now: _StepState, words: np.ndarray[Any, Any]) -> None:
        size, exchange, engine = self._size(), self._exchange, self._engine
        roll = roll_call.read(words, size, _FUNCTION)
        if roll.joined:
            ranks = ranks_of(self.process_set)
            held = name_ranks([ranks[r] for r in roll.joined])
            raise CollectiveError(
                f"{_FUNCTION}: {held} called hvd.join, "
                "which Horovod's alltoall cannot do without. Use the compression without "
                "named_parameters (Compression.sign), whose votes allow for joined ranks"
            )
        now.clock, now.roll = roll.clock, words.tobytes()
        if now.again and roll.agreed:
            now.done = True
            return
        exchange.settle()
        exchange.steps = roll.clock // size
        exchange.optimizer = None if self._optimizer is None else self._optimizer()
        for m in exchange.slots:
            if m.name not in now.packed:
                m.grad = None
        try:
            if not roll.agreed:
                channel = engine.restarted("headers")  # the same name whatever the buckets are
                channel.submit(_FUNCTION, functools.partial(exchange.agree, channel)).wait()
                roll_call.check_config(roll, _FUNCTION)
            exchange.flush()
            exchange.finish()
        finally:
            exchange.optimizer = None
            if engine.broken:
                engine.forget()  # elastic training continues, with another
        self.step = exchange.steps
        self._first = False
        for m in exchange.slots:
            into = now.packed.get(m.name)
            if into is not None and m.grad is not None and m.grad is not into:
                into.copy_(m.grad)
            m.grad = None
        self.pending.hand_out(WRITES)
        now.done = True
