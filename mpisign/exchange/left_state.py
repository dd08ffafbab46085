"""The compressors' state of an optimizer that was unwrapped, until it is wrapped again."""

from __future__ import annotations

import warnings
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.weak import WeakIdKeyDictionary

from mpisign.compressors.base import Compressor
from mpisign.exchange.gradient_exchange import GradientExchange
from mpisign.exchange.local_steps import LocalSteps

UNWRAP = "optimizer = mpisign.unwrap(optimizer), then wrap it again"


@dataclass
class _Left:
    """By parameter, not by name: names may change, and those that stay keep their state."""

    steps: int
    compressor: Compressor
    states: Any


_LEFT: weakref.WeakKeyDictionary[torch.optim.Optimizer, _Left] = weakref.WeakKeyDictionary()


def leave(
    optimizer: torch.optim.Optimizer, exchange: GradientExchange, local: LocalSteps | None
) -> None:
    """Ends ``exchange`` and keeps its state. What is in flight is discarded, on all ranks alike."""
    if local is not None and local.done:
        raise RuntimeError(
            f"unwrap: the round of local steps must be over, got {local.done} of {local.count}: "
            "ranks hold parameters of their own until its last step"
        )
    exchange.close()
    states = WeakIdKeyDictionary()
    for s in exchange.slots:
        states[s.parameter] = s.state
    _LEFT[optimizer] = _Left(exchange.steps, exchange.compressor, states)


def left_states(optimizer: torch.optim.Optimizer) -> Any:
    """The states by parameter that ``leave`` kept of ``optimizer``, to change; {} if none are."""
    left = _LEFT.get(optimizer)
    return {} if left is None else left.states


def take_up(optimizer: torch.optim.Optimizer, exchange: GradientExchange) -> bool:
    """Goes on with what ``leave`` kept of ``optimizer``; False if there is nothing."""
    left = _LEFT.pop(optimizer, None)
    if left is None:
        return False
    exchange.steps = left.steps
    if type(left.compressor) is not type(exchange.compressor):
        warnings.warn(
            f"{exchange.function}: {exchange.compressor!r} starts anew: what the optimizer kept "
            f"when it was unwrapped is the state of {left.compressor!r}",
            stacklevel=3,
        )
        return True
    for s in exchange.slots:
        s.state = left.states.get(s.parameter, {})
    return True
