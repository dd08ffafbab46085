"""Tells exchanges of gradients when a torch optimizer steps on them, whichever it is."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils.weak import WeakIdKeyDictionary

#: What GradScaler asks an optimizer for: whether it is to be called on every rank, gradients scaled
#: and finite or not. Otherwise a rank whose gradients are not finite would skip its step alone.
_CALLED_ANYWAY = "_step_supports_amp_scaling"
SCALER = (
    "torch.amp.GradScaler must be known before gradients are exchanged: give it to "
    "mpisign.ddp.MajorityVoteState(scaler=...); mpisign.DistributedOptimizer(overlap=False) and "
    "mpisign.optim find it; elsewhere take bfloat16, or GradScaler(enabled=False)"
)


class Watcher(Protocol):
    """Whose gradients optimizers step on."""

    def before_step(self, optimizer: torch.optim.Optimizer, closure: bool) -> None:
        """Called at the beginning of a step of an optimizer that holds a watched parameter.

        Twice where a step calls the step of its base class. ``closure``: the step has one, which
        may compute other gradients.
        """

    def after_closure(self, optimizer: torch.optim.Optimizer) -> None:
        """Called when the closure of such a step returns: what is stepped on is there."""

    def after_step(self, optimizer: torch.optim.Optimizer, closure: bool) -> None:
        """Called at the end of the same."""


_WATCHERS: Any = WeakIdKeyDictionary()  # parameter: its watchers, as weak references
#: Optimizers: (the change of ``_WATCHERS`` and the number of parameters it is for, the watchers).
_KNOWN: weakref.WeakKeyDictionary[torch.optim.Optimizer, tuple[Any, list[Any]]] = (
    weakref.WeakKeyDictionary()
)
_WATCH_ALL: weakref.WeakSet[Watcher] = weakref.WeakSet()
_changes = 0


def watch(parameters: Iterable[torch.Tensor], watcher: Watcher) -> None:
    """Has ``watcher`` hear of all steps on ``parameters``, for as long as both live."""
    _change()
    reference = weakref.ref(watcher)
    for p in parameters:
        _WATCHERS.setdefault(p, []).append(reference)


def watch_all(watcher: Watcher) -> None:
    """Has ``watcher`` hear of all steps of all optimizers, for as long as it lives."""
    _change()
    _WATCH_ALL.add(watcher)


def listen() -> None:
    """Has torch report steps from now on, so that the first may compute gradients by a closure."""
    _change()


def unwatch(parameters: Iterable[torch.Tensor], watcher: Watcher) -> None:
    """Undoes ``watch``."""
    _change()
    for p in parameters:
        _WATCHERS[p] = [r for r in _WATCHERS.get(p, ()) if r() not in (None, watcher)]


def _change() -> None:
    """Who hears of what changes; the first time torch's hooks are registered."""
    global _changes
    if not _changes:
        register_optimizer_step_pre_hook(_before_step)
        register_optimizer_step_post_hook(_after_step)
    _changes += 1


NEWCOMER = (
    "the optimizer has a parameter that needs a gradient and is not exchanged, since it was added "
    "or unfrozen after the first step: wrap the model again, in a new DistributedDataParallel with "
    "a new MajorityVoteState that loads this one's state_dict(), or after mpisign.unwrap(optimizer)"
)


class Newcomers:
    """Parameters that an optimizer steps on and that began to need gradients later."""

    def __init__(self) -> None:
        #: Of each optimizer: how many parameters it has, how many need gradients, and which of
        #: these nobody exchanged when it was first seen.
        self._seen: weakref.WeakKeyDictionary[torch.optim.Optimizer, tuple[Any, set[int]]] = (
            weakref.WeakKeyDictionary()
        )

    def come(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether there are some that no rank exchanges."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        now = len(parameters), sum([p.requires_grad for p in parameters])
        seen = self._seen.get(optimizer)
        if seen is not None and seen[0] == now:
            return False
        alone = {id(p) for p in parameters if p.requires_grad and not _is_watched(p)}
        if seen is not None and not alone <= seen[1]:
            return True
        self._seen[optimizer] = now, alone
        return False


def _is_watched(p: torch.Tensor) -> bool:
    return any(r() is not None for r in _WATCHERS.get(p, ()))


def call_on_every_rank(optimizer: torch.optim.Optimizer, so: bool = True) -> None:
    """Makes GradScaler call ``step`` everywhere, which skips it or raises on every rank alike."""
    optimizer.__dict__.pop(_CALLED_ANYWAY, None)
    if so:
        setattr(optimizer, _CALLED_ANYWAY, True)


def is_scaled(optimizer: torch.optim.Optimizer) -> bool:
    """Whether GradScaler calls this step."""
    found = (getattr(optimizer, name, None) for name in ("grad_scale", "found_inf"))
    return any(x is not None for x in found)


def are_zeros(grads: Iterable[torch.Tensor | None]) -> bool:
    """Whether there are gradients, and all are exactly zero."""
    there = [g.detach() for g in grads if g is not None]
    return bool(there) and not any(g.is_sparse or bool(g.any()) for g in there)


def is_still(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a step moves nothing: all learning rates are 0."""
    return all("lr" in g and float(g["lr"]) == 0 for g in optimizer.param_groups)


def held_parameters() -> set[int]:
    """The ids of the parameters that the torch optimizers of this process hold. Walks the heap."""
    held: set[int] = set()
    for thing in gc.get_objects():
        # Not isinstance, which asks proxies and lazy modules for a class of their own.
        if issubclass(type(thing), torch.optim.Optimizer):
            groups = getattr(thing, "param_groups", ())
            held.update(id(p) for group in groups for p in group["params"])
    return held


def _before_step(
    optimizer: torch.optim.Optimizer, args: Any, kwargs: Any
) -> tuple[Any, dict[str, Any]] | None:
    closure = _closure(args, kwargs)
    for watcher in _hearers(optimizer):
        watcher.before_step(optimizer, closure)
    if not closure:
        return None
    first, *rest = args
    checked = {name: _checked(optimizer, x) for name, x in kwargs.items()}
    return (first, *[_checked(optimizer, x) for x in rest]), checked


class _Checked:
    """A closure that is followed by ``after_closure``: Lightning clips in it.

    Its attributes are the closure's.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, closure: Callable[..., Any]) -> None:
        self._optimizer, self._closure = optimizer, closure

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        loss = self._closure(*args, **kwargs)
        for watcher in _hearers(self._optimizer):
            watcher.after_closure(self._optimizer)
        return loss

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_closure"), name)


def _checked(optimizer: torch.optim.Optimizer, argument: Any) -> Any:
    # Already checked: a base class's step. A module is no closure.
    if not callable(argument) or isinstance(argument, (_Checked, torch.nn.Module)):
        return argument
    return _Checked(optimizer, argument)


def _after_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    for watcher in _hearers(optimizer):
        watcher.after_step(optimizer, _closure(args, kwargs))


def _closure(args: Any, kwargs: Any) -> bool:
    return any(a is not None for a in (*args[1:], *kwargs.values()))


def _hearers(optimizer: torch.optim.Optimizer) -> list[Watcher]:
    # Anew after every change: the first backward pass, where watching begins, may be a closure's.
    key = _changes, sum(len(group["params"]) for group in optimizer.param_groups)
    known = _KNOWN.get(optimizer)
    if known is None or known[0] != key:
        known = key, _watchers_of(optimizer)
        _KNOWN[optimizer] = known
    return [w for r in known[1] if (w := r()) is not None] + list(_WATCH_ALL)


def _watchers_of(optimizer: torch.optim.Optimizer) -> list[Any]:
    found: dict[int, Any] = {}
    for group in optimizer.param_groups:
        for p in group["params"]:
            found.update((id(r()), r) for r in _WATCHERS.get(p, ()) if r() is not None)
    return list(found.values())
