"""torch.amp.GradScaler beside votes: all ranks skip a step alike, and lower the scale alike.

The GradScaler of each rank looks at its own gradients. Here ranks agree on what it found: one
header a step: before optimizers that exchange in ``step()`` send anything, and behind the last
bucket of what travels in a backward pass.
"""

from __future__ import annotations

import math
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


class ScaledPass:
    """What a backward pass of a scaled loss exchanges, before GradScaler sees it.

    Gradients are unscaled here, and looked at, before they travel; what comes back is scaled, so
    that GradScaler finds its own units, or is inf where any rank's overflowed. So it skips the step
    and lowers the scale on all ranks alike, without being told.

    Raises TypeError, ValueError for a scaler by which votes would not come back as +1 and -1.
    """

    def __init__(self, function: str, scaler: Any) -> None:
        if not isinstance(scaler, torch.amp.GradScaler):
            raise TypeError(
                f"{function}: scaler must be a torch.amp.GradScaler, got {type(scaler).__name__}"
            )
        factors = scaler.get_scale(), scaler.get_growth_factor(), scaler.get_backoff_factor()
        if not all(math.frexp(x)[0] == 0.5 for x in factors):
            raise ValueError(
                f"{function}: scaler must have powers of two as init_scale, growth_factor and "
                f"backoff_factor, by which +1 and -1 are multiplied and divided, got {factors}"
            )
        self.scaler: Any = scaler
        self._found: dict[torch.device, torch.Tensor] = {}
        self._overflowed = False

    def restart(self) -> None:
        """Begins a pass."""
        self._found, self._overflowed = {}, False

    def take(self, grads: Sequence[torch.Tensor], values: bool) -> str:
        """Looks for inf and NaN, unscales if the size of gradients counts (``values``).

        Nothing waits for a GPU. Returns why this rank cannot go on, "" if it can.
        """
        if self.scaler._scale is None:
            return "GradScaler has scaled no loss: call scaler.scale(loss).backward()"
        if values and any(g.dtype == torch.float16 for g in grads):
            return FP16
        scale = self.scaler._scale
        by = inverse(scale) if values else torch.ones_like(scale)
        for device, there in _by_device(grads).items():
            if device not in self._found:
                self._found[device] = torch.zeros((), device=device)
            torch._amp_foreach_non_finite_check_and_unscale_(
                there, self._found[device], by.to(device, non_blocking=True)
            )
        return ""

    def overflowed(self) -> None:
        """NaNs were found in what travelled: on all ranks, who were all told."""
        self._overflowed = True

    def agree(self, engine: Engine, function: str, step: int, reason: str = "") -> bool:
        """Whether any rank found inf or NaN in this pass. Collective; see ``found_anywhere``."""
        scale = self.scaler._scale
        found: Any = float(self._overflowed)
        for t in self._found.values():
            found = found + t.to(scale.device, non_blocking=True)
        return found_anywhere(engine, function, step, self.scaler, found, reason)

    def give(self, grads: Sequence[torch.Tensor], anywhere: bool) -> None:
        """Results, in GradScaler's units; inf if ``anywhere``."""
        for device, there in _by_device(grads).items():
            if anywhere:
                for g in there:
                    g.fill_(math.inf)
            else:
                torch._foreach_mul_(there, self.scaler._scale.to(device, non_blocking=True))


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
    for device, there in _by_device(grads).items():
        torch._foreach_mul_(there, inverse(scale).to(device, non_blocking=True))


def _by_device(grads: Sequence[torch.Tensor]) -> dict[torch.device, list[torch.Tensor]]:
    found: dict[torch.device, list[torch.Tensor]] = {}
    for g in grads:
        found.setdefault(g.device, []).append(g.detach())
    return found


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
