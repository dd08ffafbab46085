"""Tells exchanges of gradients when a torch optimizer steps on them, whichever it is."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.weak import WeakIdKeyDictionary

#: What GradScaler asks an optimizer for: whether it is to be called on every rank, gradients scaled
#: and finite or not. Otherwise a rank whose gradients are not finite would skip its step alone.
_CALLED_ANYWAY = "_step_supports_amp_scaling"
SCALER = (
    "torch.amp.GradScaler does not go with votes, which have no scale: take it out, or "
    "GradScaler(enabled=False)"
)


class Watcher(Protocol):
    """Whose gradients optimizers step on."""

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Called at the beginning of a step of an optimizer that holds a watched parameter.

        Twice where a step calls the step of its base class.
        """


_WATCHERS: Any = WeakIdKeyDictionary()  # parameter: its watchers, as weak references
#: Optimizers: (the change of ``_WATCHERS`` and the number of parameters it is for, the watchers).
_KNOWN: weakref.WeakKeyDictionary[torch.optim.Optimizer, tuple[Any, list[Any]]] = (
    weakref.WeakKeyDictionary()
)
_WATCH_ALL: weakref.WeakSet[Watcher] = weakref.WeakSet()
_changes = 0


def watch(parameters: Iterable[torch.Tensor], watcher: Watcher) -> None:
    """Has ``watcher`` hear of all steps on ``parameters``, for as long as both live."""
    global _changes
    if not _changes:
        register_optimizer_step_pre_hook(_before_step)
    _changes += 1
    reference = weakref.ref(watcher)
    for p in parameters:
        _WATCHERS.setdefault(p, []).append(reference)


def watch_all(watcher: Watcher) -> None:
    """Has ``watcher`` hear of all steps of all optimizers, for as long as it lives."""
    global _changes
    if not _changes:
        register_optimizer_step_pre_hook(_before_step)
    _changes += 1
    _WATCH_ALL.add(watcher)


def unwatch(parameters: Iterable[torch.Tensor], watcher: Watcher) -> None:
    """Undoes ``watch``."""
    global _changes
    _changes += 1
    for p in parameters:
        _WATCHERS[p] = [r for r in _WATCHERS.get(p, ()) if r() not in (None, watcher)]


def call_on_every_rank(optimizer: torch.optim.Optimizer) -> None:
    """Makes GradScaler call ``step``, which then raises on every rank alike."""
    setattr(optimizer, _CALLED_ANYWAY, True)


def is_scaled(optimizer: torch.optim.Optimizer) -> bool:
    """Whether GradScaler calls this step."""
    found = (getattr(optimizer, name, None) for name in ("grad_scale", "found_inf"))
    return any(x is not None for x in found)


def is_held(parameter: torch.Tensor) -> bool:
    """Whether any torch optimizer of this process holds ``parameter``. Walks the heap."""
    for thing in gc.get_objects():
        if isinstance(thing, torch.optim.Optimizer) and any(
            p is parameter for group in thing.param_groups for p in group["params"]
        ):
            return True
    return False


def _before_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    key = _changes, sum(len(group["params"]) for group in optimizer.param_groups)
    known = _KNOWN.get(optimizer)
    if known is None or known[0] != key:
        known = key, _watchers_of(optimizer)
        _KNOWN[optimizer] = known
    for reference in known[1]:
        watcher = reference()
        if watcher is not None:
            watcher.before_step(optimizer)
    for watcher in list(_WATCH_ALL):
        watcher.before_step(optimizer)


def _watchers_of(optimizer: torch.optim.Optimizer) -> list[Any]:
    found: dict[int, Any] = {}
    for group in optimizer.param_groups:
        for p in group["params"]:
            found.update((id(r()), r) for r in _WATCHERS.get(p, ()) if r() is not None)
    return list(found.values())
