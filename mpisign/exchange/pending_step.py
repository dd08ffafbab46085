"""What an exchange did to the compressors' state, until an optimizer steps on its result."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterable, Sequence
from typing import Literal

import torch

from mpisign import launcher
from mpisign.compressors.base import Compressor
from mpisign.exchange import optimizer_steps
from mpisign.exchange.optimizer_steps import (
    NEWCOMER,
    SCALER,
    Newcomers,
    are_zeros,
    held_parameters,
    is_scaled,
)
from mpisign.exchange.parameter_slot import ParameterSlot

ChangedVotes = Literal["raise", "allow"]

_FEW = 8  # values looked at in each step
_VOTES = (-1.0, 0.0, 1.0)
CHANGED = (
    "step: {} was changed after it was voted on: a vote is +1, -1 or 0, which clip_grad_norm_ and "
    "GradScaler.unscale_ would shrink, and another backward pass add to. Clip or scale before the "
    "exchange or not at all, call zero_grad() before backward(), or take changed_votes='allow'"
)


class PendingStep:
    """Hears of optimizers' steps; see ``optimizer_steps.watch``.

    An exchange ahead of the step calls ``begin`` for what it changes, ``hand_out`` when the
    parameters' gradients are its result, and ``settle`` before the next one. What no optimizer has
    stepped on until then is undone. ``changed_votes``: "raise" or "allow".
    """

    def __init__(self, function: str, changed_votes: ChangedVotes) -> None:
        check_changed_votes(function, changed_votes)
        self._changed_votes = changed_votes
        self._all: list[ParameterSlot] = []
        self._voted: set[int] = set()  # ids of slots whose aggregate has a vote's size
        self._valued: set[int] = set()  # ids of those of them where it is +1, -1 or 0
        self._pending: list[ParameterSlot] = []
        self._handed_out = self._used = self._over = False
        self._averages: set[int] = set()  # ids of those that are averaged as they are
        self._seen: set[int] = set()  # ids of slots whose parameters an optimizer steps on,
        self._unheld: set[int] = set()  # and of those that none holds
        self._warned = False
        self._mixing: set[int] = set()  # ids of slots, in the exchange to come
        self._mixed: set[int] = set()  # the same, in that whose result was handed out
        self.newcomers = Newcomers()
        self.refuses_newcomers = True  # False where another hook tells all ranks
        self._turn = 0
        self.scaled = False  # whether what was handed out is in GradScaler's units
        self.averaged = False  # whether the last result is of averages, which may be clipped
        self._steppers: list[weakref.ref[torch.optim.Optimizer]] = []

    def watch(self, slots: Iterable[ParameterSlot], compressor: Compressor) -> None:
        """Hears of steps on ``slots`` from now on."""
        slots = list(slots)
        self._all += slots
        if compressor.unit == "sign":
            self._voted.update(map(id, slots))
        if compressor.aggregate in ("vote", "gathered_vote"):
            self._valued.update(map(id, slots))
        if compressor.aggregate == "average":
            self._averages.update(map(id, slots))
        optimizer_steps.watch([s.parameter for s in slots], self)

    @property
    def open(self) -> bool:
        """Whether the last result was handed out and no optimizer has stepped on any of it."""
        return self._handed_out and not self._used and not self._unseen()

    @property
    def handed_out(self) -> bool:
        """Whether an exchange has ended since ``settle``."""
        return self._handed_out

    def holds(self, slots: Iterable[ParameterSlot]) -> bool:
        """Whether the gradients of ``slots`` are the result, and no step on it has ended.

        Then an exchange is not to be repeated, as where synchronize() is called twice.
        """
        return self._handed_out and not self._over and all(s.is_handed_out() for s in slots)

    def begin(self, slots: Sequence[ParameterSlot]) -> None:
        """Keeps the state of ``slots``, which an exchange is about to change."""
        for s in slots:
            s.begin()
        self._pending += slots

    def hand_out(self, later: int = 0, slots: Sequence[ParameterSlot] | None = None) -> None:
        """Gradients (of ``slots``, default all) are aggregates from now on.

        ``later``: see ``ParameterSlot.hand_out``.
        """
        for s in self._all if slots is None else slots:
            s.hand_out(later)
        self._handed_out, self._used, self._over = True, False, False
        self._mixed, self._mixing = self._mixing, set()

    def is_computing(self, slot: ParameterSlot) -> None:
        """A backward pass is about to add to the slot's gradient.

        If that still is what was handed out, no step may be taken on the result.
        """
        if slot.is_handed_out(early=self.scaled):
            self._mixing.add(id(slot))
        else:
            self._mixing.discard(id(slot))

    def before_step(self, optimizer: torch.optim.Optimizer, closure: bool) -> None:
        """Called by ``optimizer_steps``: takes what the optimizer steps on as done.

        RuntimeError if GradScaler calls the step, or if it is not the votes that are stepped on. A
        ``closure`` computes what is stepped on only now: see ``after_closure``, ``after_step``.
        """
        if all(r() is not optimizer for r in self._steppers):
            self._steppers.append(weakref.ref(optimizer))
        if self.refuses_newcomers and self.newcomers.come(optimizer):
            raise RuntimeError(f"step: {NEWCOMER}")
        if self._handed_out and not closure:
            self._take(self._checked(optimizer))

    def after_closure(self, optimizer: torch.optim.Optimizer) -> None:
        """Called by ``optimizer_steps``: RuntimeError as ``before_step``.

        Nothing is taken yet: LBFGS calls its closure several times, and the last one counts.
        """
        if self._handed_out:
            self._checked(optimizer)

    def _checked(self, optimizer: torch.optim.Optimizer) -> list[ParameterSlot]:
        """What the optimizer is about to step on; none of it if the step is made up."""
        stepped = self._held_by(optimizer)
        fused = is_scaled(optimizer)  # then GradScaler leaves it to the optimizer to unscale
        averages = all(id(s) in self._averages for s in stepped)
        if fused and not (self.scaled or averages):
            raise RuntimeError(f"step: {SCALER}")
        if _are_made_up(stepped):
            return []  # a step that is to fill the optimizer's state
        mixed = next((s for s in stepped if id(s) in self._mixed), None)
        if mixed is not None:
            raise RuntimeError(
                f"step: the gradient of {mixed.name!r} still held votes when a backward pass added "
                "to it: call zero_grad() before, and where one step follows several passes, run "
                "all but the last in the module's no_sync()"
            )
        if self._changed_votes == "raise" and not (self.averaged or fused):
            self._check([s for s in stepped if id(s) in self._voted])
        return stepped

    def after_step(self, optimizer: torch.optim.Optimizer, closure: bool) -> None:
        """Called by ``optimizer_steps``: another step needs another exchange."""
        if closure and self._handed_out:
            self._take(self._held_by(optimizer))
        self._over = self._used

    def _held_by(self, optimizer: torch.optim.Optimizer) -> list[ParameterSlot]:
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        return [s for s in self._pending if id(s.parameter) in held]

    def _take(self, stepped: Sequence[ParameterSlot]) -> None:
        for s in stepped:
            s.pending = False
            self._seen.add(id(s))
        self._used = self._used or bool(stepped)
        self._pending = [s for s in self._pending if s.pending]

    def commit(self) -> None:
        """The optimizer is about to step on all of it."""
        for s in self._pending:
            s.pending = False
        self._pending.clear()
        self._used = True

    def undo(self) -> None:
        """Takes back what the exchange in progress has done."""
        for s in self._pending:
            s.undo()
        self._pending.clear()
        self._handed_out = False

    def settle(self) -> bool:
        """Undoes what no optimizer has stepped on; whether that is all of the last step."""
        if not self._handed_out:
            return False
        if unseen := self._unseen():
            if not self._warned and launcher.is_first():
                warnings.warn(
                    f"no torch optimizer holds {unseen[0].name!r}, whose gradient is exchanged: "
                    "each exchange counts as a step for it, and one whose result is thrown away "
                    "enters the compressor's state too",
                    stacklevel=2,
                )
            self._warned = True
            self._take(unseen)
            self._seen.difference_update(map(id, unseen))  # nothing was seen
        unused = bool(self._pending) and not self._used
        self.undo()
        return unused

    def forget(self) -> None:
        """The state is another one now."""
        self.commit()
        self._handed_out = False

    def take_steppers(self) -> list[torch.optim.Optimizer]:
        """The optimizers that have stepped since the last call, in order."""
        found = [o for r in self._steppers if (o := r()) is not None]
        self._steppers.clear()
        return found

    def _unseen(self) -> list[ParameterSlot]:
        """Pending slots whose steps cannot be seen: no torch optimizer holds their parameters."""
        new = [s for s in self._pending if id(s) not in self._seen and id(s) not in self._unheld]
        if new:
            held = held_parameters()
            self._seen.update(id(s) for s in new if id(s.parameter) in held)
            self._unheld.update(id(s) for s in new if id(s.parameter) not in held)
        return [s for s in self._pending if id(s) not in self._seen]

    def _check(self, slots: Sequence[ParameterSlot]) -> None:
        # What is written over but still is votes does no harm: clip_grad_norm_(p, inf) logs norms.
        # Writes through ``.data`` leave no trace but the values: a few are looked at.
        self._turn += 1
        for i, s in enumerate(slots):
            if s.was_rewritten():
                harmless = id(s) in self._valued and is_vote(s.parameter.grad, few=False)
            elif i == self._turn % len(slots) and id(s) in self._valued:
                harmless = is_vote(s.parameter.grad)
            else:
                continue
            if not harmless:
                raise RuntimeError(CHANGED.format(f"the gradient of {s.name!r}"))


def _are_made_up(slots: Sequence[ParameterSlot]) -> bool:
    """Whether all gradients are zeros that nobody handed out."""
    there = [s for s in slots if s.parameter.grad is not None]
    if any(s.is_handed_out() for s in there):
        return False
    return are_zeros(s.parameter.grad for s in there)


def check_changed_votes(function: str, changed_votes: object) -> None:
    """ValueError unless it is "raise" or "allow"."""
    if changed_votes not in ("raise", "allow"):
        raise ValueError(
            f"{function}: changed_votes must be 'raise' or 'allow', got {changed_votes!r}"
        )


def is_vote(grad: torch.Tensor | None, few: bool = True) -> bool:
    """Whether all values, or a ``few`` without waiting for a GPU, are votes."""
    if grad is None or grad.layout is not torch.strided:
        return True
    grad = grad.detach()
    if not few:
        return bool(((grad == 0) | (grad.abs() == 1)).all())
    if grad.device.type != "cpu":
        return True
    flat = grad.reshape(-1) if grad.is_contiguous() else grad[:1].reshape(-1)
    return all(x in _VOTES for x in flat[:: max(1, len(flat) // _FEW)].tolist())
