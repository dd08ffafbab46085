"""What a plain torch optimizer does before and after its steps, once it steps on aggregates."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.weak import WeakIdKeyDictionary

from mpisign.exchange.grad_scaler import ScaledStep, SetAside, only_signs_count
from mpisign.exchange.gradient_exchange import GradientExchange
from mpisign.exchange.left_state import UNWRAP, leave, take_up
from mpisign.exchange.local_steps import local_steps_of
from mpisign.exchange.optimizer_state import with_votes, without_votes
from mpisign.exchange.optimizer_steps import (
    SCALER,
    are_zeros,
    call_on_every_rank,
    is_scaled,
    is_still,
)
from mpisign.exchange.parameter_slot import ParameterSlot

KEY = "mpisign"  # the attribute of an optimizer that has hooks
#: Of each parameter: it starts one exchange only. Not an attribute of it, which would be pickled.
_HOOKS: Any = WeakIdKeyDictionary()


class StepHooks:
    """The hooks of one optimizer. ``overlap``: exchanges begin during the backward pass.

    ``wrap_again``: given the optimizer, once these are off, and its parameters' names, wraps it as
    it was wrapped.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        exchange: GradientExchange,
        overlap: bool,
        wrap_again: Callable[[torch.optim.Optimizer, list[tuple[str, torch.Tensor]] | None], Any],
    ) -> None:
        self.exchange = exchange
        self.wrap_again = wrap_again
        self.local = local_steps_of(exchange.compressor, exchange.slots, exchange.seed)
        parameters = [p for g in optimizer.param_groups for p in g["params"]]
        self._ids = [id(p) for p in parameters]
        self._stepping = False
        self._spoilt = ""
        self._overlap = overlap
        self._skipped: SetAside | None = None  # in a step that GradScaler has all ranks skip
        self._computed = False  # whether autograd has computed a gradient since the last step
        for i, m in enumerate(exchange.slots):
            p = m.parameter
            if p in _HOOKS:  # of an optimizer that this one replaces
                _HOOKS[p].remove()
            if p.requires_grad:
                hook = _starter(weakref.ref(self), i) if overlap else _marker(weakref.ref(self))
                _HOOKS[p] = p.register_post_accumulate_grad_hook(hook)
        call_on_every_rank(optimizer)
        self._optimizer = weakref.ref(optimizer)
        self._registered = [
            optimizer.register_step_pre_hook(self.before_step),
            optimizer.register_step_post_hook(self.after_step),
            optimizer.register_state_dict_post_hook(self.save),
            optimizer.register_load_state_dict_pre_hook(self.load),
        ]
        exchange.pending.refuses_newcomers = False
        take_up(optimizer, exchange)

    def take_off(self, optimizer: torch.optim.Optimizer) -> None:
        """Removes all hooks; the state stays, for the next who wraps ``optimizer``."""
        leave(optimizer, self.exchange, self.local)
        for handle in self._registered:
            handle.remove()
        for m in self.exchange.slots:
            if m.parameter in _HOOKS:
                _HOOKS.pop(m.parameter).remove()
        call_on_every_rank(optimizer, False)
        delattr(optimizer, KEY)

    def computed(self, m: ParameterSlot) -> None:
        """With overlap, once a backward pass has computed the slot's gradient."""
        p = m.parameter
        self._computed = True
        if not self.takes_part():
            return  # what it computed is not needed
        if self.exchange.is_ready(m) and m.grad is not p.grad:
            self.exchange.discard()  # what zero_grad() has thrown away
            self._spoilt = ""
        if self.exchange.is_ready(m):
            self._spoilt = (
                f"the gradient of {m.name!r} was computed twice before step(), but is on its "
                "way already: with overlap=True there is one backward() a step"
            )
            raise RuntimeError(f"backward: {self._spoilt}")
        if not self.exchange.ready_slots and (optimizer := self._optimizer()) is not None:
            self.exchange.refuse(self._others(optimizer))  # while buckets can tell all ranks
        m.grad = p.grad
        self.exchange.ready(m)

    def before_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """The step pre-hook."""
        # torch hooks the step of every class: a step that calls its base class's comes here twice.
        if self._stepping and all(m.is_as_handed_out() for m in self.exchange.slots):
            return
        if self._skipped is not None and self._skipped.holds:
            return
        self._stepping, self._skipped = False, None
        reason = self._spoilt or self._unfit(optimizer, (*args[1:], *kwargs.values()))
        self._spoilt = ""
        made_up = not self._computed and are_zeros(m.parameter.grad for m in self.exchange.slots)
        self._computed = False
        scaled = None if self._overlap else ScaledStep.of(optimizer)
        if scaled is not None:
            if not self._goes_on(scaled, reason):
                self._skipped = SetAside(optimizer)
                return
            reason = ""
        elif is_scaled(optimizer):
            reason = reason or SCALER
        if not (made_up and is_still(optimizer)):
            try:
                self._exchange(reason, made_up)
            except BaseException:
                if scaled is not None:
                    scaled.forget()
                raise
            finally:
                for m in self.exchange.slots:
                    m.grad = None
            self.exchange.pending.commit()
        for m in self.exchange.slots:
            m.hand_out()
        self._stepping = True

    def _exchange(self, reason: str, made_up: bool) -> None:
        """All gradients become their aggregates.

        ``made_up``: this rank's are zeros that no backward pass computed, as if it had none.
        """
        slots = self.exchange.slots
        ready = self.exchange.ready_slots
        absent = not self.takes_part()
        for m in slots:
            if absent:
                m.grad = m.parameter.grad = None
                continue
            if id(m) not in ready:
                m.grad = None if made_up else m.parameter.grad
            elif m.grad is not m.parameter.grad or m.changed():
                reason = reason or (
                    f"the gradient of {m.name!r} was changed between backward() and step(), while "
                    "on its way: with overlap=True clip or scale before, or take overlap=False"
                )
        local = None if self.exchange.warming else self.local
        if local is not None and not local.take(self.exchange.steps, self._place()[0]):
            if reason:
                raise RuntimeError(f"step: {reason}")
            return
        self.exchange.flush(reason)
        self.exchange.finish()
        for m in slots:
            if m.grad is not None:
                m.parameter.grad = m.grad

    def after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """The step post-hook."""
        self._stepping = False
        if self._skipped is not None:
            self._skipped.restore()
            self._skipped = None

    def _goes_on(self, scaled: ScaledStep, reason: str) -> bool:
        """Whether no rank's gradients overflowed."""
        exchange = self.exchange
        signs = not (exchange.warming or self.local or exchange.regimes)
        signs = signs and only_signs_count(b.compressor for b in exchange.buckets)
        engine, absent = exchange.engine_now(), not self.takes_part()
        return scaled.goes_on(engine, "step", exchange.steps, not signs, absent, reason)

    def takes_part(self) -> bool:
        """Whether this rank counts in the exchange that is next."""
        rank, size = self._place()
        there = self.exchange.participants(size)
        return there is None or rank in there

    def _place(self) -> tuple[int, int]:
        transport = self.exchange.engine_now().transport
        return transport.rank, transport.size

    def _unfit(self, optimizer: Any, arguments: tuple[Any, ...]) -> str:
        """Why this rank cannot take part; it must say so where the others wait for it."""
        if any(a is not None for a in arguments):
            return (
                "a closure computes gradients after they were voted on; "
                "call backward() first and step() without arguments"
            )
        return self._others(optimizer)

    def _others(self, optimizer: torch.optim.Optimizer) -> str:
        if [id(p) for g in optimizer.param_groups for p in g["params"]] == self._ids:
            return ""
        return f"the optimizer's parameters are not those it had when it was wrapped: {UNWRAP}"

    def save(self, optimizer: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
        """The state_dict post-hook."""
        more = {} if self.local is None else {"local": self.local.done}
        return with_votes(state_dict, self.exchange, self._place(), more)

    def load(self, optimizer: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
        """The load_state_dict pre-hook."""
        rest, saved = without_votes(state_dict, self.exchange, self._place())
        self.exchange.drop()
        self.exchange.load_state_dict(saved)
        if self.local is not None:
            self.local.done = int(saved.get("local", 0))
        return rest


def _marker(reference: weakref.ref[StepHooks]) -> Any:
    def hook(p: torch.Tensor) -> None:
        hooks = reference()
        if hooks is not None:
            hooks._computed = True

    return hook


def _starter(reference: weakref.ref[StepHooks], i: int) -> Any:
    # Not the slot itself: torch keeps the hook with the parameter, which would keep itself alive.
    def hook(p: torch.Tensor) -> None:
        hooks = reference()
        if hooks is not None:
            hooks.computed(hooks.exchange.slots[i])

    return hook
