"""A hook's state for torch.distributed.checkpoint, which keeps one copy of equal names."""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.distributed as dist

from mpisign.exchange.gradient_exchange import GradientExchange

_CHECKPOINT = "torch.distributed.checkpoint"


def is_asked() -> bool:
    """Whether the caller's caller is torch.distributed.checkpoint, saving or loading."""
    name = sys._getframe(2).f_globals.get("__name__", "")
    return name == _CHECKPOINT or name.startswith(f"{_CHECKPOINT}.")


def under_rank(state: dict[str, Any]) -> dict[str, Any]:
    """A rank's state under a name of its own."""
    return {_name(): state}


def of_rank(state: dict[str, Any]) -> dict[str, Any]:
    """The inverse, if it is such a state."""
    return state.get(_name(), state) if dist.is_initialized() else state


def initial(exchange: GradientExchange) -> dict[str, Any]:
    """A state of zeros, by which torch.distributed.checkpoint knows what to load."""
    found = [(s, b.compressor) for b in exchange.buckets for s in b.slots]
    states = {s.name: c.initial_state(s.parameter.detach()) for s, c in found}
    tensors = {
        name: {k: v for k, v in state.items() if isinstance(v, torch.Tensor)}
        for name, state in states.items()
    }
    return {"steps": 0, "state": {name: kept for name, kept in tensors.items() if kept}}


def _name() -> str:
    return f"rank{dist.get_rank()}_of_{dist.get_world_size()}"
