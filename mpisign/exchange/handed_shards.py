"""Shards that FSDP's hook handed out, and whether they still are votes when a step uses them."""

from __future__ import annotations

import weakref

import torch
from torch.distributed.tensor import DTensor
from torch.multiprocessing.reductions import StorageWeakRef

from mpisign.exchange import optimizer_steps
from mpisign.exchange.optimizer_steps import SCALER, is_scaled
from mpisign.exchange.pending_step import CHANGED, ChangedVotes, check_changed_votes, is_vote


class HandedShards:
    """What FSDP's hook handed out, found again by their memory: it knows no parameters.

    ``steppers``: the optimizers that have stepped on the last of it.
    """

    def __init__(self, function: str, changed_votes: ChangedVotes) -> None:
        check_changed_votes(function, changed_votes)
        self._checks = changed_votes == "raise"
        self._memory: dict[int, tuple[StorageWeakRef, bool]] = {}  # and whether it holds votes
        self._steppers: list[weakref.ref[torch.optim.Optimizer]] = []
        self._fresh = False  # something was handed out since an optimizer stepped
        optimizer_steps.watch_all(self)

    @property
    def steppers(self) -> list[torch.optim.Optimizer]:
        return [o for r in self._steppers if (o := r()) is not None]

    def add(self, aggregate: torch.Tensor, votes: bool) -> None:
        """``aggregate`` will be gradients; not ``votes``: the averages of warm-up."""
        storage = aggregate.untyped_storage()
        self._memory[storage.data_ptr()] = StorageWeakRef(storage), votes
        self._fresh = True

    def before_step(self, optimizer: torch.optim.Optimizer, closure: bool) -> None:
        """Called by ``optimizer_steps``; RuntimeError as ``PendingStep.before_step``."""
        if not self._memory or closure:
            return
        self._memory = {at: m for at, m in self._memory.items() if not m[0].expired()}
        own = False
        for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"]):
            grad = p.grad.to_local() if isinstance(p.grad, DTensor) else p.grad
            if grad is None or grad.layout is not torch.strided:
                continue
            found = self._memory.get(grad.untyped_storage().data_ptr())
            if found is None:
                continue
            own = True
            if is_scaled(optimizer):
                raise RuntimeError(f"step: {SCALER}")
            if self._checks and found[1] and not is_vote(grad):
                raise RuntimeError(CHANGED.format(f"gradient {i} of the optimizer"))
        if own:
            if self._fresh:
                self._fresh = False
                self._steppers.clear()
            if all(r() is not optimizer for r in self._steppers):
                self._steppers.append(weakref.ref(optimizer))

    def after_closure(self, optimizer: torch.optim.Optimizer) -> None:
        """Called by ``optimizer_steps``; RuntimeError as ``before_step``."""
        self.before_step(optimizer, closure=False)

    def after_step(self, optimizer: torch.optim.Optimizer, closure: bool) -> None:
        """Called by ``optimizer_steps``."""
