"""State of compressors in checkpoints: one entry a parameter, by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mpisign.exchange.parameter_slot import ParameterSlot

#: What begins so belongs to a bucket or a rank, and has a shape of its own.
FREE = "owner_"


def state_dict(steps: int, slots: Sequence[ParameterSlot]) -> dict[str, Any]:
    """{"steps": n, "state": {name: {key: copy}}}."""
    kept = {m.name: {k: _copy(v) for k, v in m.state.items()} for m in slots if m.state}
    return {"steps": steps, "state": kept}


def load(state: dict[str, Any], slots: Sequence[ParameterSlot]) -> int:
    """Copies what ``state_dict`` returned into the slots; the steps."""
    kept = state["state"]
    unknown = set(kept) - {m.name for m in slots}
    if unknown:
        raise ValueError(f"load_state_dict: no parameter is named {sorted(unknown)[0]!r}")
    for m in slots:
        for key, value in kept.get(m.name, {}).items():
            free = key.startswith(FREE) or not isinstance(value, torch.Tensor)
            if not free and value.shape != m.parameter.shape:
                raise ValueError(
                    f"load_state_dict: {key} of {m.name!r} must have shape "
                    f"{tuple(m.parameter.shape)}, got {tuple(value.shape)}"
                )
    for m in slots:
        device = m.parameter.device
        m.state.clear()
        m.state.update({k: _copy(v, device) for k, v in kept.get(m.name, {}).items()})
    return int(state["steps"])


def _copy(value: Any, device: torch.device | None = None) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return value.detach().to(device or value.device, copy=True)
