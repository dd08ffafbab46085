"""Takes Horovod's hooks off the parameters of its optimizers, ours and its own."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils.weak import WeakIdKeyDictionary

_HOOKED: Any = WeakIdKeyDictionary()  # parameter: a weak reference to the optimizer that hooks it


def unwrap(optimizer: Any) -> torch.optim.Optimizer:
    """See ``mpisign.unwrap``."""
    own = optimizer.__dict__.get("_mpisign")
    if own is not None:
        own.leave()
    silence(optimizer, list(optimizer._allreduce_delay))
    optimizer._handles.clear()
    optimizer.__class__ = type(optimizer).__bases__[0]
    for name in ("_mpisign", "_compression", "_requires_update", "_parameter_names"):
        optimizer.__dict__.pop(name, None)
    return optimizer  # type: ignore[no-any-return]


def silence(optimizer: Any, parameters: Iterable[torch.Tensor]) -> None:
    """Makes the hooks of ``parameters`` do nothing.

    Horovod keeps no handles of its hooks, which live as long as the parameters. They exchange a
    gradient when a counter of backward passes has come down to 0, and infinity never does.
    """
    for p in parameters:
        optimizer._allreduce_delay[p] = math.inf
        optimizer._handles.pop(p, None)


def take_over(optimizer: Any, parameters: Iterable[torch.Tensor]) -> None:
    """Silences the optimizers of ours that hooked these parameters before."""
    reference = weakref.ref(optimizer)
    for p in parameters:
        before = _HOOKED.get(p)
        old = None if before is None else before()
        if old is not None and old.__dict__.get("_mpisign") is not None:
            silence(old, [p])
            old._mpisign.replaced = True
        _HOOKED[p] = reference
