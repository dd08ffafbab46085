"""Forward, backward and step in the trace of MPISIGN_TRACE, for every front end.

By torch's hooks for all modules and all optimizers. Once the trace has its steps those of modules
are removed; those of optimizers do nothing: torch may be going through them right then.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.modules import module as modules
from torch.optim import optimizer as optimizers

from mpisign import tracing
from mpisign.exchange.after_backward import after_backward, is_running
from mpisign.tracing.chrome import ChromeTrace, Lane


def trace_steps() -> None:
    """From now on steps are those of torch's optimizers. Nothing where there is no trace."""
    trace = tracing.trace
    if trace is None or trace.by_optimizer:
        return
    trace.by_optimizer = True
    spans = _Spans(trace)
    handles = [
        modules.register_module_forward_pre_hook(spans.forward_begins),
        modules.register_module_forward_hook(spans.forward_ends, always_call=True),
    ]
    optimizers.register_optimizer_step_pre_hook(spans.step_begins)
    optimizers.register_optimizer_step_post_hook(spans.step_ends)
    trace.when_over += [spans.are_over, *(handle.remove for handle in handles)]


class _Training:
    """Of one rank."""

    depth = 0  # of modules that call modules
    forward = 0.0
    backward = 0.0  # when the one that runs began, 0 if none does
    stepping = 0  # a step that calls its base class's is hooked twice
    step = 0.0


class _Spans:
    def __init__(self, trace: ChromeTrace) -> None:
        self._trace, self._over = trace, False

    def are_over(self) -> None:
        """Nothing is noted any more."""
        self._over = True

    def _lane(self) -> tuple[Lane, _Training]:
        lane = self._trace.lane()
        lane.thread = threading.get_ident()
        if lane.training is None:
            lane.training = _Training()
        return lane, lane.training

    def forward_begins(self, module: Any, args: Any) -> None:
        _, now = self._lane()
        now.depth += 1
        if now.depth == 1:
            now.forward, now.stepping = time.perf_counter(), 0  # a step may have raised
            if not is_running():
                now.backward = 0.0

    def forward_ends(self, module: Any, args: Any, output: Any) -> None:
        lane, now = self._lane()
        now.depth = max(0, now.depth - 1)
        if now.depth or not (lane.recording and now.forward):
            return
        lane.add("forward", 0, now.forward, time.perf_counter())
        for tensor in _tensors(output):
            if tensor.requires_grad:
                tensor.register_hook(lambda grad: self._backward_begins(lane, now))

    def _backward_begins(self, lane: Lane, now: _Training) -> None:
        if now.backward:
            return
        now.backward = time.perf_counter()

        def ends() -> None:
            start, now.backward = now.backward, 0.0
            if start and lane.recording:
                lane.add("backward", 0, start, time.perf_counter())

        after_backward(ends)

    def step_begins(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if self._over:
            return
        _, now = self._lane()
        now.stepping += 1
        if now.stepping == 1:
            now.step = time.perf_counter()

    def step_ends(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if self._over:
            return
        lane, now = self._lane()
        if not now.stepping:
            return
        now.stepping -= 1
        if now.stepping:
            return
        if lane.recording:
            lane.add("step", 0, now.step, time.perf_counter())
        self._trace.step_is_over(lane)


def _tensors(output: Any) -> list[torch.Tensor]:
    """Those of a module's result: a tensor, or some in a tuple, a list or a mapping."""
    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, (tuple, list)):
        return [x for x in output if isinstance(x, torch.Tensor)]
    return []
