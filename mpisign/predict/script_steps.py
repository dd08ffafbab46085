"""The process in which ``mpisign predict --script`` runs a training script and times its steps."""

from __future__ import annotations

import json
import runpy
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.optim import optimizer as torch_optimizer

from mpisign.predict.script import STEPS


class _EnoughError(BaseException):
    """Leaves the script after its last step that counts: no ``except Exception`` catches it."""


class StepTimer:
    """Times the steps of the first torch optimizer that steps in this process.

    Gradients of a parameter that appear several times in a step count by their last time.
    """

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.backward: list[float] = []
        self.shapes: list[list[int]] = []
        self._first: Any = None
        self._times: list[Any] = []
        self._hook = torch_optimizer.register_optimizer_step_post_hook(self._after)

    def _after(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if self._first is None:
            self._first = optimizer
            self._watch(optimizer)
        if optimizer is not self._first:
            return
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())
        if self._times:
            self.backward.append(_between(self._times[0], self._times[-1]))
        self._times = []
        if len(self.ends) > STEPS:
            raise _EnoughError

    def _watch(self, optimizer: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for p in parameters:
            if p.requires_grad and p.numel():
                self.shapes.append(list(p.shape) or [1])
                p.register_post_accumulate_grad_hook(lambda p: self._times.append(_now(p)))

    def write(self, path: Path) -> None:
        """What was measured, as JSON; from now on nothing is."""
        self._hook.remove()
        steps = [b - a for a, b in zip(self.ends, self.ends[1:], strict=False)]
        found = {
            "steps": len(self.ends),
            "step": median(steps) if steps else 0.0,
            "backward": median(self.backward) if self.backward else 0.0,
            "shapes": self.shapes,
        }
        path.write_text(json.dumps(found))


def _now(p: torch.Tensor) -> Any:
    if p.device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _between(first: Any, last: Any) -> float:
    if isinstance(first, float):
        return float(last - first)
    return float(first.elapsed_time(last)) / 1e3


def main(result: Path, script: str, arguments: list[str]) -> None:
    """Runs ``script`` as ``__main__`` and writes what was measured to ``result``."""
    timer = StepTimer()
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).resolve().parent))
    try:
        runpy.run_path(script, run_name="__main__")
    except _EnoughError:
        pass
    except SystemExit as ended:
        if ended.code:
            raise
    timer.write(result)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
