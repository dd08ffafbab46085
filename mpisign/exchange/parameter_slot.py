"""One parameter of a model as the exchange sees it."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mpisign.compressors.base import State

if TYPE_CHECKING:
    import torch


_REPLACED = "_mpisign_replaced"
_some_replaced = False


def mark_replaced(parameters: Iterable[torch.Tensor], by: str) -> None:
    """These belong to no model any more: the function ``by`` has put others in their place."""
    global _some_replaced
    for p in parameters:
        _some_replaced = True
        setattr(p, _REPLACED, by)


def replaced_among(slots: Iterable[ParameterSlot]) -> str:
    """Why a step over ``slots`` would change no model, "" if it would."""
    for s in slots if _some_replaced else ():
        if by := getattr(s.parameter, _REPLACED, ""):
            return (
                f"{by} has put another parameter in the place of {s.name!r}: give it the optimizer "
                f"({by}(model, optimizer=...)), or make a new one"
            )
    return ""


@dataclass(eq=False, slots=True)
class ParameterSlot:
    """A parameter, the compressor's state for it, and its gradient in this step.

    ``grad``: this rank's gradient, None where it has none; an aggregator writes the aggregate into
    it, or makes it where only other ranks had one. ``rate``: the learning rate of its parameter
    group, 1 where the front end knows none. ``version``: torch's, of ``grad`` when it was handed
    over or returned: a write in between would make the replicas diverge.

    ``pending``: an exchange has moved ``state`` on, and no optimizer has stepped on its result yet.
    """

    name: str
    parameter: torch.Tensor
    state: State = field(default_factory=dict)
    grad: torch.Tensor | None = None
    rate: float = 1.0
    version: int = 0
    pending: bool = False
    _before: State = field(default_factory=dict)
    _handed: tuple[weakref.ref[torch.Tensor], int] | None = None

    def begin(self) -> None:
        """Keeps a copy of ``state``, for ``undo``. Its memory is kept from step to step."""
        import torch

        old, self._before = self._before, {}
        for key, value in self.state.items():
            room = old.get(key)
            if not isinstance(value, torch.Tensor):
                self._before[key] = copy.copy(value)
            elif (
                isinstance(room, torch.Tensor)
                and room.shape == value.shape
                and room.dtype == value.dtype
                and room.device == value.device
            ):
                self._before[key] = room.copy_(value)
            else:
                self._before[key] = value.clone()
        self.pending = True

    def committed(self) -> State:
        """The state as optimizers' steps have made it."""
        return self._before if self.pending else self.state

    def undo(self) -> None:
        """Takes ``state`` back to what it was at ``begin``."""
        self.state, self._before = self._before, self.state
        self.pending = False

    def hand_out(self, later: int = 0) -> None:
        """The parameter's gradient is the aggregate now; ``later``: writes that will not count."""
        p = self.parameter  # which a WeakSlot may have lost
        g = None if p is None else p.grad
        self._handed = None if g is None else (weakref.ref(g), g._version + later)

    def is_handed_out(self, early: int = 0) -> bool:
        """Whether the parameter's gradient is still the aggregate, unchanged.

        ``early``: of the writes that will not count, so many may be to come.
        """
        if self._handed is None:
            return False
        grad, version = self._handed[0](), self._handed[1]
        if grad is None or grad is not self.parameter.grad:
            return False
        return version - early <= grad._version <= version

    def is_as_handed_out(self) -> bool:
        """The same, or there was no aggregate and is no gradient."""
        if self.parameter.grad is None:
            return self._handed is None
        return self.is_handed_out()

    def was_rewritten(self) -> bool:
        """Whether the parameter's gradient is no longer the aggregate that was handed out.

        A gradient that was taken away is none.
        """
        taken_away = self._handed is None or self.parameter.grad is None
        return not (taken_away or self.is_handed_out())

    def target(self) -> torch.Tensor:
        """Where the aggregate goes: ``grad``, made if there is none."""
        import torch

        if self.grad is None:
            self.grad = torch.empty_like(self.parameter)
        return self.grad.detach()

    def changed(self) -> bool:
        """Whether somebody wrote to ``grad`` since ``version``, as far as torch records.

        Slices of one tensor, as ``torch.stack`` makes gradients, have one version in common.
        """
        grad = self.grad
        if grad is None or grad.is_sparse:  # which has no storage, and is refused
            return False
        if grad.untyped_storage().nbytes() != grad.numel() * grad.element_size():
            return False
        return grad._version != self.version

    def match_strides(self) -> None:
        """Lays ``grad`` out in memory as ``parameter``, equal on all ranks.

        torch takes other kernels for other strides, which round 16-bit floats otherwise.
        """
        import torch

        usual = torch.empty_like(self.parameter)
        if self.grad is not None and self.grad.stride() != usual.stride():
            self.grad = usual.copy_(self.grad.detach())
