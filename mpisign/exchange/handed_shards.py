"""Shards of votes that became gradients, and whether they still are votes when a step uses them."""

from __future__ import annotations

import torch
from torch.distributed.tensor import DTensor
from torch.multiprocessing.reductions import StorageWeakRef

from mpisign.exchange import optimizer_steps
from mpisign.exchange.optimizer_steps import SCALER, is_scaled
from mpisign.exchange.pending_step import CHANGED, ChangedVotes, check_changed_votes, is_vote


class HandedShards:
    """Votes that FSDP's hook handed out, found again by their memory: it knows no parameters."""

    def __init__(self, function: str, changed_votes: ChangedVotes) -> None:
        check_changed_votes(function, changed_votes)
        self._memory: dict[int, StorageWeakRef] = {}
        if changed_votes == "raise":
            optimizer_steps.watch_all(self)

    def add(self, votes: torch.Tensor) -> None:
        """``votes`` will be gradients."""
        storage = votes.untyped_storage()
        self._memory[storage.data_ptr()] = StorageWeakRef(storage)

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Called by ``optimizer_steps``; RuntimeError as ``PendingStep.before_step``."""
        if not self._memory:
            return
        live = {at for at, memory in self._memory.items() if not memory.expired()}
        for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"]):
            grad = p.grad
            grad = grad.to_local() if isinstance(grad, DTensor) else grad
            if grad is None or not grad.numel() or grad.untyped_storage().data_ptr() not in live:
                continue
            if is_scaled(optimizer):
                raise RuntimeError(f"step: {SCALER}")
            if not is_vote(grad):
                raise RuntimeError(CHANGED.format(f"gradient {i} of the optimizer"))
