"""torch.amp.GradScaler beside votes: all ranks skip a step alike, and lower the scale alike.

The GradScaler of each rank looks at its own gradients. Here ranks agree on what it found: one
header a step, before optimizers that exchange in ``step()`` send anything.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterable, Sequence
from types import FrameType
from typing import Any

import torch

from mpisign.compressors.base import Compressor
from mpisign.compressors.sign import Sign
from mpisign.engine.engine import Engine
from mpisign.engine.header import Header
from mpisign.exchange.optimizer_steps import is_scaled

OPERATION = "found_inf"
_SET = ("grad_scale", "found_inf")  # what GradScaler sets on an optimizer that it calls anyway
FP16 = (
    "GradScaler does not unscale float16 gradients, and this compressor needs their size: keep "
    "parameters in float32 under autocast, or take compression='sign'"
)


def only_signs_count(compressors: Iterable[Compressor]) -> bool:
    """Whether scaled gradients give the result that unscaled ones would."""
    return all(type(c) is Sign for c in compressors)


def found_anywhere(
    engine: Engine, function: str, step: int, scaler: Any, found: Any, reason: str = ""
) -> bool:
    """Whether any rank's gradients hold inf or NaN. Collective: one header, one wait.

    Args:
        engine: of the ranks.
        function: for messages.
        step: of the exchange, the same on all ranks.
        scaler: this rank's GradScaler, whose scale must be that of all.
        found: this rank's answer: a tensor of one float on the scale's device, 0.0 for none.
        reason: why this rank cannot go on, if so.

    Raises:
        CollectiveError: a rank cannot go on, on all ranks.
        DisagreementError: scales or counts of clean steps differ.
    """
    scale, growth = scaler._scale, scaler._growth_tracker
    found = found if isinstance(found, torch.Tensor) else torch.full_like(scale, float(found))
    # One copy to the host, in the place of GradScaler's own.
    there, size, count = torch.stack([found.float(), scale, growth.to(scale.dtype)]).tolist()
    header = Header(
        OPERATION,
        step=step,
        nan="abstain",
        settings=int.from_bytes(struct.pack("<fI", size, int(count)), "little"),
        presence=bytes([bool(there)]) + bytes(15),
    )
    if reason:
        header = header.refusal(reason.removeprefix(f"{function}: "))
    agreed = engine.submit(function, lambda wire: engine.headers(wire, header, function)).wait()
    return any(p[0] for p in agreed.presences)


class ScaledStep:
    """A step that GradScaler calls on scaled gradients: ``step()`` will exchange them.

    GradScaler leaves skipping to the optimizer (``_step_supports_amp_scaling``), so that all ranks
    get here.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, scaler: Any) -> None:
        self._optimizer, self._scaler = optimizer, scaler
        self._scale, self._found = (getattr(optimizer, name, None) for name in _SET)
        for name in _SET:  # not for a fused step, which is given what was exchanged
            setattr(optimizer, name, None)

    @classmethod
    def of(cls, optimizer: torch.optim.Optimizer) -> ScaledStep | None:
        """The one that is running; None if the step is not GradScaler's."""
        scaler = _calling() if is_scaled(optimizer) else None
        return None if scaler is None else cls(optimizer, scaler)

    def goes_on(
        self, engine: Engine, function: str, step: int, values: bool, absent: bool, reason: str
    ) -> bool:
        """Whether no rank has found inf or NaN; GradScaler.update() will see the same.

        Collective. ``values``: the size of gradients counts, not their signs alone: they are
        unscaled here, unless ``unscale_`` has done it. ``absent``: this rank's do not count.
        """
        grads = self._gradients()
        if values and self._scale is not None and any(g.dtype == torch.float16 for g in grads):
            reason = reason or FP16
        found = 0 if absent or self._found is None else self._found
        try:
            anywhere = found_anywhere(engine, function, step, self._scaler, found, reason)
        except BaseException:
            self.forget()
            raise
        of_devices = self._scaler._found_inf_per_device(self._optimizer)
        of_devices.setdefault(self._scaler._scale.device, torch.zeros_like(self._scaler._scale))
        for t in of_devices.values():
            t.fill_(float(anywhere))
        if values and self._scale is not None and not anywhere:
            unscale(grads, self._scale)
        return not anywhere

    def forget(self) -> None:
        """Leaves nothing on the optimizer; GradScaler does not after an error."""
        for name in _SET:
            self._optimizer.__dict__.pop(name, None)

    def _gradients(self) -> list[torch.Tensor]:
        grads = [p.grad for group in self._optimizer.param_groups for p in group["params"]]
        return [g for g in grads if g is not None and g.layout is torch.strided]


class SetAside:
    """Gradients that an optimizer is not to step on, so that it moves nothing."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._grads = [(p, p.grad) for p in parameters]
        for p in parameters:
            p.grad = None

    @property
    def holds(self) -> bool:
        """Whether nobody has computed others since."""
        return all(p.grad is None for p, _ in self._grads)

    def restore(self) -> None:
        """Gives them back."""
        for p, g in self._grads:
            p.grad = g


def inverse(scale: torch.Tensor) -> torch.Tensor:
    """1 / scale, rounded as GradScaler's."""
    return scale.double().reciprocal().float()


def unscale(grads: Sequence[torch.Tensor], scale: torch.Tensor) -> None:
    """Divides gradients by the scale in place, as GradScaler does."""
    by_device: dict[torch.device, list[torch.Tensor]] = {}
    for g in grads:
        by_device.setdefault(g.device, []).append(g.detach())
    for device, there in by_device.items():
        torch._foreach_mul_(there, inverse(scale).to(device, non_blocking=True))


def _calling() -> Any:
    """The GradScaler whose ``step`` is running in this thread.

    It tells an optimizer what it found, but not who it is; what it will read in ``update()`` is
    its own.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is torch.amp.GradScaler.step.__code__:
            return frame.f_locals["self"]
        frame = frame.f_back
    return None
