"""Makes a job of one process train on votes as well, and refuses what Horovod does not exchange.

With one process Horovod registers no gradient hooks and never calls its compression: an optimizer
that steps on signs with many ranks would step on raw gradients with one. A torch hook on every
``Optimizer.step`` corrects that without changing Horovod. With more Horovod exchanges the
parameters that needed gradients when its optimizer was made; others would part the replicas.
"""

from __future__ import annotations

import weakref
from typing import Any

import horovod.torch as hvd
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from mpisign.exchange.left_state import UNWRAP
from mpisign.horovod.vote import VoteCompression

_Mark = tuple["weakref.ref[torch.Tensor]", int]
_done: weakref.WeakKeyDictionary[torch.optim.Optimizer, dict[int, _Mark]] = (
    weakref.WeakKeyDictionary()
)


def _vote_alone(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    compression = getattr(optimizer, "_compression", None)
    if not isinstance(compression, VoteCompression):
        return
    held: set[torch.Tensor] = getattr(optimizer, "_requires_update", set())
    if held and any(
        p.requires_grad and p not in held for g in optimizer.param_groups for p in g["params"]
    ):
        raise RuntimeError(
            "step: the optimizer has a parameter that was added, or began to need a gradient, "
            f"after it was wrapped: {UNWRAP}"
        )
    # Empty only where Horovod has registered no hooks; elastic jobs of one rank have them.
    if getattr(optimizer, "_requires_update", True) or hvd.size() != 1:
        return
    # The hook runs for Horovod's step and again for the step of the class that Horovod wraps: a
    # gradient that was not written to since its vote is a vote already.
    marks = _done.setdefault(optimizer, {})
    contexts = []
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.grad is None or _is_vote(p.grad, marks.get(id(p))):
                continue
            contexts.append((p, *compression.compress(p.grad)))
    with torch.no_grad():
        for p, payload, ctx in contexts:
            p.grad.copy_(compression.decompress(payload, ctx))
            marks[id(p)] = (weakref.ref(p.grad), p.grad._version)


def _is_vote(grad: torch.Tensor, mark: _Mark | None) -> bool:
    return mark is not None and mark[0]() is grad and mark[1] == grad._version


def install() -> None:
    """Registers the hook. Called once, by ``import mpisign.horovod``."""
    register_optimizer_step_pre_hook(_vote_alone)
