"""A model's gradients in each step: cut into buckets, exchanged while others are computed."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch

from mpisign import census, policies
from mpisign.compressors.accordion import Accordion
from mpisign.compressors.base import Compressor
from mpisign.engine.agreement import Agreed
from mpisign.engine.engine import Engine
from mpisign.engine.handle import Handle
from mpisign.engine.header import Header
from mpisign.errors import DisagreementError, NaNError
from mpisign.exchange.aggregators import WarmUpAggregator, aggregator_for
from mpisign.exchange.aggregators.base import Aggregator
from mpisign.exchange.arguments import check_seed, check_settings, check_warmup
from mpisign.exchange.broadcast_state import broadcast_state
from mpisign.exchange.buckets import GradientBucket, cut, warn_of_bf16_mean
from mpisign.exchange.consistency import (
    check_parameters,
    check_slots,
    digest_of,
    present_anywhere,
)
from mpisign.exchange.optimizer_options import options_of, options_of_steppers, rates_of
from mpisign.exchange.optimizer_steps import unwatch
from mpisign.exchange.parameter_slot import ParameterSlot, replaced_among
from mpisign.exchange.participation import check_participation, participants, terms
from mpisign.exchange.pending_step import ChangedVotes, PendingStep
from mpisign.exchange.regimes import Regimes
from mpisign.exchange.saved_state import SavedState
from mpisign.exchange.skip import Rule, rule_for, variant
from mpisign.exchange.step_count import sync_step_count
from mpisign.exchange.trace_steps import trace_steps
from mpisign.stats import stats
from mpisign.transports.base import Steps
from mpisign.transports.tagged import TaggedTransport

#: Aggregates of which a bucket in flight holds little more than a plane.
PLANES_ONLY = ("vote", "polar_vote", "mean_of_signs", "average")
_COPYING_IN_FLIGHT = 2  # buckets at once of other aggregates, which copy states
_MANY = 1 << 20  # coordinates, from which on processors and links are what ranks wait for
_GRACE = 5.0  # seconds for the rest of a step whose first bucket ranks disagree on


class GradientExchange(SavedState):
    """What one front end exchanges, step after step, the same on every rank.

    ``slots``: the parameters, in the order in which their gradients are expected. In each step
    the front end sets ``slot.grad`` and calls ``ready(slot)`` (or ``flush`` for all at once), and
    finds the aggregate in ``slot.grad`` after ``finish``. A bucket starts when all its slots are
    ready and all buckets before it have started, so that collectives start in one order on all
    ranks, whatever the order of gradients; every call advances what is in flight.

    ``byzantine_f``: of the votes, see ``majority_vote``.

    ``engine`` is called at the beginning of each step: elastic training changes ranks. ``skip``,
    ``bucket_size``: see ``skip.rule_for``, ``buckets.cut``. ``optimizer``: its learning rates go to
    the compressor, its options must be equal on all ranks. ``function`` is for messages.

    ``state``: compare the optimizer's own state too wherever parameters are compared. ``number``:
    of this exchange on its engine; buckets of two exchanges must differ. ``replicas``: False where
    ranks may begin with different parameters and options; then a difference is a warning, but
    options of the optimizer that steps on the parameters must be equal from its first step on.

    ``ahead``: buckets travel before the optimizer steps, which it need not do: what no optimizer
    steps on leaves nothing behind, see ``PendingStep``. ``changed_votes``: "raise" where votes were
    written to between the exchange and the step, or "allow".

    ``warmup_steps``: steps, from the first one on, in which plain averages are exchanged.

    ``participation``: the share of the ranks that take part in each later step, drawn anew. The
    others send nothing that counts, keep their states, and receive the aggregate: the front end
    sets no gradient there.

    ``newcomers``: called at the beginning of a step; True if ranks may have counted different
    numbers of steps, and all continue from the largest. ``before``: steps that run before each
    bucket's collective, on the same tagged transport.
    """

    def __init__(
        self,
        function: str,
        engine: Callable[[], Engine],
        slots: Sequence[ParameterSlot],
        compressor: Compressor,
        *,
        skip: str | Rule | None = "auto",
        algorithm: policies.Algorithm = "auto",
        byzantine_f: int = 0,
        seed: int = 0,
        bucket_size: int | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        replicas: bool = True,
        state: bool = False,
        number: int = 0,
        newcomers: Callable[[], bool] = lambda: False,
        before: Callable[[TaggedTransport], Steps[None]] | None = None,
        ahead: bool = False,
        changed_votes: ChangedVotes = "raise",
        warmup_steps: int = 0,
        participation: float = 1.0,
    ) -> None:
        check_settings(function, compressor, algorithm, byzantine_f, bucket_size)
        check_seed(function, seed)
        self._participation = check_participation(
            function, participation, compressor, int(byzantine_f)
        )
        super().__init__(slots, compressor, int(seed), PendingStep(function, changed_votes))
        self.function = function
        self.algorithm, self.byzantine_f = algorithm, int(byzantine_f)
        self.optimizer = optimizer
        self._replicas = replicas
        self._number = number
        self._state_of = optimizer if state else None
        self._newcomers = newcomers
        self._before = before
        self._syncing = False
        rule = rule_for(function, skip, compressor)
        self._hows = {id(s): rule(s.name, s.parameter) for s in self.slots}
        self._bucket_size = bucket_size
        self.regimes: Regimes | None = None
        if isinstance(compressor, Accordion):
            of = [(s, variant(function, self._hows[id(s)], compressor)) for s in self.slots]
            self.regimes = Regimes(compressor, [s for s, c in of if isinstance(c, Accordion)])
        self.buckets: list[GradientBucket] = []
        self._cut()
        if skip == "auto":
            warn_of_bf16_mean(function, self.buckets, compressor)
        self.ready_slots: set[int] = set()  # ids, of this step
        self._engine_of = engine
        self.warmup_steps = check_warmup(function, warmup_steps)
        self._terms = self.warmup_steps ^ terms(self._participation)
        self._drawn: tuple[Any, list[int] | None] = None, None
        self._handles: list[Handle] = []
        self._reason = self._untold = ""
        self._rates: dict[torch.Tensor, float] = {}
        self._ahead = ahead
        self._steppers: list[torch.optim.Optimizer] = []  # since the last exchange
        self._empty = 0  # buckets of this step that have no gradient on any rank
        for b in self.buckets if ahead else ():
            self.pending.watch(b.slots, compressor if self.regimes else b.compressor)
        trace_steps()
        self.restart()

    @property
    def started(self) -> bool:
        """Whether a bucket of this step has started."""
        return bool(self._handles)

    @property
    def warming(self) -> bool:
        """Whether the next step exchanges plain averages."""
        return self.steps < self.warmup_steps

    def participants(self, size: int) -> list[int] | None:
        """The ranks, of ``size``, that take part in the step that is next; None: all."""
        if self.warming or self._participation == 1:
            return None
        if self._drawn[0] != (self.steps, size):
            found = participants(self._participation, self.seed, self.steps, size)
            self._drawn = (self.steps, size), found
        return self._drawn[1]

    def is_ready(self, slot: ParameterSlot) -> bool:
        """Whether ``ready(slot)`` was called in this step."""
        return id(slot) in self.ready_slots

    def ready(self, slot: ParameterSlot) -> None:
        """``slot.grad`` is this step's. Starts what can start, moves on what is in flight."""
        self.begin_step()
        self.ready_slots.add(id(slot))
        if slot.grad is not None:
            slot.version = slot.grad._version
        self._bucket_of[id(slot)].waiting -= 1
        if self._handles:
            assert self.engine is not None
            self.engine.progress.advance()
        while (bucket := self._next()) and not (bucket.waiting or self._crowded(bucket)):
            self._start(bucket)

    def flush(self, reason: str = "") -> None:
        """Starts every bucket that has not. ``reason``: why this rank cannot take part, if so."""
        self.begin_step()
        reason = reason or replaced_among(self.slots)
        told, self._reason = self._reason, self._reason or reason
        # Too late to tell the others where all is on its way: then this rank raises alone.
        self._untold = reason if not told and len(self._handles) == len(self.buckets) else ""
        while bucket := self._next():
            if crowd := self._crowded(bucket):
                crowd[0].settle()
            else:
                self._start(bucket)

    def finish(self) -> None:
        """Waits for all buckets of this step, once ``flush`` has started them.

        Raises what the first of them raised, the same on every rank.
        """
        errors: list[Exception] = []
        if self._untold:
            errors.append(RuntimeError(f"{self.function}: {self._untold}"))
        try:
            for handle in self._handles:
                try:
                    if any(isinstance(e, DisagreementError) for e in errors):
                        handle.settle(_GRACE)  # other ranks may have no such bucket
                    else:
                        handle.wait()
                except Exception as error:
                    errors.append(error)
        finally:
            empty, self._empty = self._empty, 0
            self.restart()
        if errors:
            if self._ahead:
                self.pending.undo()
            raise errors[0]
        if self.regimes is not None:
            self.regimes.add(self.warming)
        self.pending.averaged = self.warming
        for s in self.slots:
            if s.grad is not None and s.grad.stride() != s.parameter.stride():
                s.match_strides()
        self.steps += empty < len(self.buckets) or not self.buckets
        self._fresh = False

    def begin_step(self) -> None:
        """Before a step's first gradient: with Accordion an epoch may end, and buckets change."""
        if self.regimes is None or self.ready_slots or self._handles:
            return
        self.settle()
        self.regimes.begin(self.steps, self._rates_now(), self.warming)
        if self.regimes.high != self._cut_for:
            self._cut()
            for b in self.buckets:
                b.waiting = len(b.slots)

    def next_epoch(self) -> dict[str, str]:
        """Ends the epoch of Accordion: by name, what each parameter sends from now on."""
        if self.regimes is None:
            return {}
        if self.regimes.steps_per_epoch is not None:
            raise ValueError(
                f"next_epoch: epochs end by steps_per_epoch={self.regimes.steps_per_epoch}"
            )
        if self.ready_slots or self._handles:
            raise RuntimeError("next_epoch: call it between step() and the next backward()")
        self.settle()
        self.regimes.end_epoch(self.steps, self._rates_now(), self.warming)
        return {name: "high" if high else "low" for name, high in self.regimes.high.items()}

    def settle(self) -> bool:
        """Before the next step: undoes what no optimizer has stepped on; whether it is all."""
        unused = self._ahead and not self._handles and self.pending.settle()
        self.steps -= unused
        return unused

    def take_back(self, steps: int) -> None:
        """Nothing of the step that has just ended counts: ``steps`` is the count before it."""
        self.pending.undo()
        self.steps = steps

    def discard(self) -> None:
        """Ends this step, whose gradients were thrown away, and leaves nothing of it behind."""
        steps = self.steps
        try:
            self.flush()
            self.finish()
        except NaNError:
            pass
        finally:
            for s in self.slots:
                s.grad = None
        self.pending.undo()
        self.steps = steps

    def drop(self) -> None:
        """Ends what is in flight and discards the step, errors included."""
        if self.ready_slots:
            try:
                self.flush()
                self.finish()
            except Exception:  # noqa: S110 - told by what made this rank drop the step
                pass
        for s in self.slots:
            s.grad = None

    def close(self) -> None:
        """Ends what is in flight and releases what is kept; the slots keep their states."""
        self.drop()
        self.settle()
        unwatch((s.parameter for s in self.slots), self.pending)
        for b in self.buckets:
            b.free()

    def refuse(self, reason: str) -> None:
        """What this rank will tell all others in this step, from its next bucket on."""
        self._reason = self._reason or reason

    def agree(self, engine: Engine, wire: TaggedTransport) -> Steps[Agreed]:
        """Headers alone, of the first bucket; raises what ranks disagree on."""
        bucket = self.buckets[0]
        header = Header(self._kind(bucket).operation)
        try:
            check_parameters(self.function, self.slots)
            header = self._header(engine, header.operation, bucket, fresh=False)
        except Exception as error:
            header = header.refusal(str(error).removeprefix(f"{self.function}: "))
        return (yield from engine.headers(wire, header, self.function))

    def engine_now(self) -> Engine:
        """The engine of this step, from now on."""
        engine = self._engine_of()
        if engine is not self.engine:
            self._fresh = True
            if sum(b.layout.length for b in self.buckets) >= _MANY:
                engine.progress.patient = True
        self.engine = engine
        return engine

    def _cut(self) -> None:
        """Buckets by what each parameter sends now; those that stay as they were are kept."""
        hows = {s.name: self._hows[id(s)] for s in self.slots}
        new = cut(
            self.function, self.slots, self.compressor, lambda n, p: hows[n], self._bucket_size
        )
        old = self.buckets
        self.buckets = [next((b for b in old if b.is_like(n)), n) for n in new]
        for b in old:
            if not any(b is n for n in self.buckets):
                b.free()
        for i, b in enumerate(self.buckets):
            b.index = i
        self._kinds = [aggregator_for(b.compressor) for b in self.buckets]
        self._seeds = [b.seed(self.seed) for b in self.buckets]
        self._bucket_of = {id(s): b for b in self.buckets for s in b.slots}
        self._cut_for = {} if self.regimes is None else self.regimes.high

    def _rates_now(self) -> dict[torch.Tensor, float]:
        return {} if self.optimizer is None else rates_of(self.optimizer)

    def _next(self) -> GradientBucket | None:
        n = len(self._handles)
        return self.buckets[n] if n < len(self.buckets) else None

    def _kind(self, bucket: GradientBucket) -> type[Aggregator]:
        return WarmUpAggregator if self.warming else self._kinds[bucket.index]

    def _crowded(self, bucket: GradientBucket) -> list[Handle]:
        """What must end before ``bucket`` may start: rounds that copy states copy a few at once."""
        if bucket.compressor.aggregate in PLANES_ONLY:
            return []
        live = [h for h in self._handles if not h.over]
        return live if len(live) >= _COPYING_IN_FLIGHT else []

    def restart(self) -> None:
        """Begins a step: no slot is ready. Called while no bucket is in flight."""
        self._handles.clear()
        self.ready_slots.clear()
        self._reason = self._untold = ""
        for b in self.buckets:
            b.waiting = len(b.slots)

    def _start(self, bucket: GradientBucket) -> None:
        if not self._handles:
            self.settle()
            self._steppers = self.pending.take_steppers()
            self.engine_now()
            self._tell_origin()
            self._syncing = self._newcomers()
            if self.optimizer is not None:
                self._rates = rates_of(self.optimizer)
        assert self.engine is not None
        engine = self.engine
        number, reason, fresh = engine.votes, self._reason, self._fresh
        engine.votes += 1
        if census.every and self.steps % census.every == 0:
            self._sample(bucket)
        steps = functools.partial(self._collective, engine, bucket, number, reason, fresh)
        self._handles.append(
            engine.progress.submit(
                self.function, steps, self.steps, number, f"bucket {bucket.index}", **bucket.about
            )
        )

    def _sample(self, bucket: GradientBucket) -> None:
        for s in bucket.slots:
            if s.grad is not None and s.grad.layout is torch.strided:
                stats().votes.add_gradient(s.grad)

    def _collective(
        self,
        engine: Engine,
        bucket: GradientBucket,
        number: int,
        reason: str,
        fresh: bool,
        wire: TaggedTransport,
    ) -> Steps[None]:
        if self._before is not None:
            yield from self._before(wire)
        if self._syncing:
            self.steps = yield from self._sync(wire, bucket, fresh)
        if self._ahead:
            self.pending.begin(bucket.slots)
        kind = self._kind(bucket)
        header, aggregator = Header(kind.operation), None
        try:
            header = self._header(engine, kind.operation, bucket, fresh)
            aggregator = bucket.aggregator_on(engine, kind, wire.rank, wire.size)
            aggregator.present = self.participants(wire.size)
            aggregator.begin(header, wire.transport.message)
        except Exception as error:
            reason = reason or str(error) or type(error).__name__
        if reason:
            header = header.refusal(reason.removeprefix(f"{self.function}: "))
        elif aggregator and (yield from aggregator.planned(engine, wire, header, number)):
            bucket.update_versions()
            return
        agreed = yield from engine.headers(wire, header, self.function)
        assert aggregator is not None  # or all have raised
        if agreed.same_presence:
            anywhere = bucket.present
        else:
            anywhere = yield from present_anywhere(wire, bucket.present)
        if not anywhere.any() or not bucket.layout.length:
            self._empty += not anywhere.any()
            for s, there in zip(bucket.slots, anywhere, strict=True):
                if there:
                    s.target()  # of nothing, on all ranks
            return
        if agreed.fresh and bucket.compressor.shared:
            yield from broadcast_state(wire, bucket.slots, bucket.compressor.shared)
        yield from aggregator.steps(engine, wire, agreed, number, anywhere)
        bucket.update_versions()

    def _header(
        self, engine: Engine, operation: str, bucket: GradientBucket, fresh: bool
    ) -> Header:
        """This rank's header, with everything that may fail on one rank alone."""
        for i, s in enumerate(bucket.slots):
            bucket.present[i] = s.grad is not None
            s.rate = self._rates.get(s.parameter, 1.0)
        if fresh and bucket.index == 0:
            check_parameters(self.function, self.slots)
        check_slots(self.function, bucket.slots, bucket.layout.lengths)
        if fresh and bucket.index == 0 and self._replicas:
            engine.digest = digest_of(self.slots, self._state_of)
        return Header(
            operation,
            step=self.steps,
            tensor=(bucket.tensor + self._number) % (1 << 64),
            length=bucket.layout.length,
            seed=self._seeds[bucket.index],
            algorithm=self.algorithm,
            byzantine_f=self.byzantine_f if bucket.compressor.aggregate == "vote" else 0,
            settings=self._options(bucket.compressor, fresh) ^ self._terms ^ self._agreed(),
            presence=hashlib.blake2b(bucket.present.tobytes(), digest_size=16).digest(),
            fresh=fresh,
        )

    def _options(self, compressor: Compressor, fresh: bool) -> int:
        """A digest of the options that must be equal on all ranks."""
        if self.optimizer is not None and self._replicas:
            return options_of(compressor, self.optimizer)
        return options_of_steppers(compressor, [] if fresh else self._steppers)

    def _agreed(self) -> int:
        return 0 if self.regimes is None else self.regimes.digest()

    def _sync(self, wire: TaggedTransport, bucket: GradientBucket, fresh: bool) -> Steps[int]:
        if not fresh or bucket.index or self._replicas:
            return (yield from sync_step_count(wire, self.steps))
        options = options_of(bucket.compressor, self.optimizer)
        parameters = int.from_bytes(digest_of(self.slots, self._state_of)[2:10], "little")
        return (yield from sync_step_count(wire, self.steps, options, parameters))
