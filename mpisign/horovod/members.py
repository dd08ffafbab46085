"""Which parameter a gradient belongs to, and what a compressor remembers of it.

Horovod tells a compression no names. A gradient is found by identity, ``p.grad is gradient``, which
holds for whatever order ranks reach their parameters in; never by a count of calls.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from mpisign.compressors.base import State

_OWN = "mpisign"  # the entry of state_dict that is no parameter's


class Member:
    """One parameter: its name, its compressor state, and who came after it last time."""

    def __init__(self, name: str, parameter: torch.Tensor, state: State) -> None:
        self.name = name
        self.parameter = weakref.ref(parameter)
        self.state = state
        self.next: Member | None = None

    def owns(self, grad: torch.Tensor) -> bool:
        """True if ``grad`` is this parameter's gradient."""
        p = self.parameter()
        return p is not None and p.grad is grad


class Members:
    """Parameters by gradient, and their states by name."""

    def __init__(self) -> None:
        self._by_id: dict[int, Member] = {}
        self._loaded: dict[str, State] = {}
        self._last: Member | None = None

    def __iter__(self) -> Iterator[Member]:
        return iter(self._by_id.values())

    def add(self, named: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Adds parameters not known yet; a loaded state of that name becomes theirs."""
        self._by_id = {k: m for k, m in self._by_id.items() if m.parameter() is not None}
        for name, p in named:
            if id(p) not in self._by_id:
                self._by_id[id(p)] = Member(name, p, {})
                if name in self._loaded:
                    self._assign(self._by_id[id(p)], self._loaded.pop(name))

    def find(self, grad: torch.Tensor) -> Member | None:
        """The parameter whose gradient is ``grad``; one look if the order is the last step's."""
        guess = self._last.next if self._last is not None else None
        if guess is None or not guess.owns(grad):
            guess = next((m for m in self if m.owns(grad)), None)
            if guess is not None and self._last is not None:
                self._last.next = guess
        if guess is not None:
            self._last = guess
        return guess

    def state_dict(self, step: int) -> dict[str, State]:
        """``{name: state}`` and the step under "mpisign"; ValueError if names are not unique."""
        states = dict(self._loaded)
        for m in self:
            if not m.state:
                continue
            if m.name in states:
                raise ValueError(
                    f"state_dict: two parameters are called {m.name!r}: give each optimizer a "
                    "compression of its own, Compression.signum(...)"
                )
            states[m.name] = dict(m.state)
        return {**states, _OWN: {"step": step}}

    def load_state_dict(self, states: dict[str, State]) -> int:
        """Takes over saved states, now or when a parameter of the name appears; returns the step.

        ValueError if a state does not fit its parameter.
        """
        states = {name: dict(state) for name, state in states.items()}
        step = int(states.pop(_OWN, {"step": 0})["step"])
        for m in self:
            m.state = {}
            if m.name in states:
                self._assign(m, states.pop(m.name))
        self._loaded = states
        return step

    @staticmethod
    def _assign(member: Member, state: State) -> None:
        p = member.parameter()
        assert p is not None
        for key, value in state.items():
            if isinstance(value, torch.Tensor) and value.shape != p.shape:
                raise ValueError(
                    f"load_state_dict: {key} of {member.name!r} must have shape "
                    f"{tuple(p.shape)}, got {tuple(value.shape)}"
                )
        member.state = {
            key: value.detach().to(p.device, copy=True)
            if isinstance(value, torch.Tensor)
            else value
            for key, value in state.items()
        }


def optimizers_of(compression: object) -> list[torch.optim.Optimizer]:
    """Every optimizer that holds ``compression``.

    Horovod keeps a compression as ``optimizer._compression``, so whoever refers to it is, or is the
    ``__dict__`` of, such an optimizer. Walks the heap once: tens of milliseconds.
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
