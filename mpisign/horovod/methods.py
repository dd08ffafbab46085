"""The methods of ``mpisign.horovod.DistributedOptimizer``: Horovod's, except for a few.

As in Horovod, each class of optimizer gets a class made of them. A subclass of Horovod's would not
do, because its methods call ``super(self.__class__, self)``. ``__module__`` stays Horovod's, which
tells ``hvd.broadcast_optimizer_state`` not to call ``step``.
"""

from __future__ import annotations

from typing import Any

import torch
from horovod.torch.optimizer import _DistributedOptimizer

from mpisign.exchange.optimizer_state import KEY, NONE

_HOROVODS = _DistributedOptimizer.__dict__


def __init__(self: Any, *args: Any) -> None:
    _HOROVODS["__init__"](self, *args)
    if self.process_set.included() and not self._requires_update:
        self._register_hooks()  # Horovod registers none for one process


def _register_hooks(self: Any) -> None:
    self._groups = None  # buckets replace them
    _HOROVODS["_register_hooks"](self)


def _allreduce_grad_async(self: Any, p: torch.Tensor) -> tuple[Any, None]:
    return self._mpisign.start(p), None


def synchronize(self: Any) -> None:
    if self.process_set.included():
        self._mpisign.synchronize()  # without effect if it has been called for these gradients
    self._synchronized = True


def step(self: Any, closure: Any = None) -> Any:
    if closure is not None:
        reason = (
            "a closure computes gradients after they were exchanged; "
            "call backward() first and step() without arguments"
        )
        if self.process_set.included():
            self._mpisign.synchronize(reason)
        raise ValueError(f"step: {reason}")
    return _HOROVODS["step"](self)


def zero_grad(self: Any, set_to_none: bool = True) -> None:
    if self._handles:
        _HOROVODS["zero_grad"](self)  # which raises
    super(self.__class__, self).zero_grad(set_to_none=set_to_none)


def state_dict(self: Any) -> dict[str, Any]:
    state: dict[str, Any] = super(self.__class__, self).state_dict()
    # Ranks outside the process set have no votes' state.
    return {**state, KEY: NONE} if self._mpisign is None else self._mpisign.state_dict(state)


def load_state_dict(self: Any, state_dict: dict[str, Any]) -> None:
    if self._mpisign is not None:
        rest = self._mpisign.load_state_dict(state_dict)
    else:
        rest = {key: value for key, value in state_dict.items() if key != KEY}
    _HOROVODS["load_state_dict"](self, rest)


METHODS: dict[str, Any] = {
    **_HOROVODS,
    "_mpisign": None,  # the HorovodGradients on ranks of the process set
    **{
        f.__name__: f
        for f in (
            __init__,
            _register_hooks,
            _allreduce_grad_async,
            synchronize,
            step,
            zero_grad,
            state_dict,
            load_state_dict,
        )
    },
}
