"""Finds the parameter that a gradient belongs to, and with it the compressor's state.

Horovod passes no names to a compression. A gradient is found by identity, ``p.grad is gradient``,
because ranks may reach their parameters in different orders.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable
from typing import Any

import torch

from mpisign.compressors.base import State
from mpisign.exchange.parameter_slot import ParameterSlot

_STEP = "mpisign"  # the entry of state_dict that belongs to no parameter


class WeakSlot(ParameterSlot):
    """A slot that does not keep its parameter alive; ``parameter`` is None once that is freed."""

    @property
    def parameter(self) -> Any:  # type: ignore[override]
        return self._reference()

    @parameter.setter
    def parameter(self, parameter: torch.Tensor) -> None:
        self._reference = weakref.ref(parameter)


class Slots:
    """The slots of a compression: by gradient within a step, by name in checkpoints.

    ``kind``: WeakSlot where the compression may outlive the model.
    """

    def __init__(self, kind: type[ParameterSlot]) -> None:
        self._kind = kind
        self._by_id: dict[int, ParameterSlot] = {}
        self._next: dict[
            int, ParameterSlot
        ] = {}  # by id(slot): the slot that followed in the last step
        self._loaded: dict[str, State] = {}  # of parameters that are not known yet
        self._last: ParameterSlot | None = None

    @property
    def all(self) -> list[ParameterSlot]:
        """The slots of parameters that live."""
        return [m for m in self._by_id.values() if m.parameter is not None]

    def add(self, named: Iterable[tuple[str, torch.Tensor]]) -> list[ParameterSlot]:
        """Adds parameters that are not known yet, with their loaded states. Returns all slots."""
        self._by_id = {k: m for k, m in self._by_id.items() if m.parameter is not None}
        self._next, self._last = {}, None
        for name, p in named:
            if id(p) not in self._by_id:
                slot = self._by_id[id(p)] = self._kind(name, p)
                if name in self._loaded:
                    _load(slot, self._loaded.pop(name))
        return list(self._by_id.values())

    def find(self, grad: torch.Tensor) -> ParameterSlot | None:
        """The slot whose parameter's gradient is ``grad``; fast if the order is the last step's."""
        guess = None if self._last is None else self._next.get(id(self._last))
        if guess is None or not _owns(guess, grad):
            guess = next((m for m in self._by_id.values() if _owns(m, grad)), None)
            if guess is not None and self._last is not None:
                self._next[id(self._last)] = guess
        if guess is not None:
            self._last = guess
        return guess

    def sparse_of(self, shape: torch.Size) -> ParameterSlot | None:
        """A slot of this shape whose gradient is sparse, if there is one."""
        for m in self._by_id.values():
            p = m.parameter
            if p is not None and p.shape == shape and p.grad is not None and p.grad.is_sparse:
                return m
        return None

    def state_dict(
        self, step: int, origin: dict[str, Any], committed: bool = False
    ) -> dict[str, State]:
        """``{name: state}``, and under "mpisign" the step and ``origin``.

        ``committed``: without what no optimizer has stepped on. ValueError if names are not unique.
        """
        states = dict(self._loaded)
        for m in self._by_id.values():
            state = m.committed() if committed else m.state
            if state and m.name in states:
                raise ValueError(
                    f"state_dict: two parameters are called {m.name!r}: give each optimizer a "
                    "compression of its own, Compression.signum(...)"
                )
            if state:
                states[m.name] = dict(state)
        return {**states, _STEP: {"step": step, **origin}}

    def load_state_dict(self, states: dict[str, State]) -> tuple[int, dict[str, Any]]:
        """Loads states, now or when a parameter of the name is added; the step and the origin.

        Raises ValueError if a state does not fit its parameter.
        """
        states = {name: dict(state) for name, state in states.items()}
        origin = states.pop(_STEP, {"step": 0})
        step = origin.pop("step", None)
        if not isinstance(step, int) or step < 0:
            raise ValueError(f"load_state_dict: the step must be a number from 0, got {step!r}")
        for m in self._by_id.values():
            m.state = {}
            if m.name in states:
                _load(m, states.pop(m.name))
        self._loaded = states
        return step, origin


def _owns(slot: ParameterSlot, grad: torch.Tensor) -> bool:
    p = slot.parameter
    return p is not None and p.grad is grad


def _load(slot: ParameterSlot, state: State) -> None:
    p = slot.parameter
    tensors = {key: x for key, x in state.items() if isinstance(x, torch.Tensor)}
    for key, x in tensors.items():
        if x.shape != p.shape:
            raise ValueError(
                f"load_state_dict: {key} of {slot.name!r} must have shape "
                f"{tuple(p.shape)}, got {tuple(x.shape)}"
            )
    copies = {key: x.detach().to(p.device, copy=True) for key, x in tensors.items()}
    slot.state = {**state, **copies}


def optimizers_of(compression: object) -> list[torch.optim.Optimizer]:
    """Every optimizer that holds ``compression``.

    Horovod keeps a compression as ``optimizer._compression``, so its referrers are these optimizers
    or their ``__dict__``. Walks the heap once: tens of milliseconds.
    """
    found: dict[int, torch.optim.Optimizer] = {}
    for holder in gc.get_referrers(compression):
        owners: list[Any] = [holder]
        if isinstance(holder, dict) and holder.get("_compression") is compression:
            owners = gc.get_referrers(holder)
        found.update({id(o): o for o in owners if isinstance(o, torch.optim.Optimizer)})
    return list(found.values())


def named_by_optimizers(compression: object) -> list[tuple[str, torch.Tensor]]:
    """The named parameters of every optimizer that holds ``compression``."""
    names = [getattr(o, "_parameter_names", {}) for o in optimizers_of(compression)]
    return [(name, p) for known in names for p, name in known.items()]
