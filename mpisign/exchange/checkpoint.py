"""State of compressors in checkpoints: one entry a parameter, by name."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch

from mpisign.exchange.parameter_slot import ParameterSlot

#: What begins so belongs to a bucket or a rank, and has a shape of its own.
FREE = "owner_"
#: Whose state it is: a dict of rank, size, seed, compressor.
OF = "of"


def state_dict(
    steps: int, slots: Sequence[ParameterSlot], committed: bool = False
) -> dict[str, Any]:
    """{"steps": n, "state": {name: {key: copy}}}. ``committed``: without what is pending."""
    states = {s.name: s.committed() if committed else s.state for s in slots}
    kept = {name: {k: _copy(v) for k, v in state.items()} for name, state in states.items()}
    return {"steps": steps, "state": {name: state for name, state in kept.items() if state}}


def load(state: dict[str, Any], slots: Sequence[ParameterSlot]) -> int:
    """Copies what ``state_dict`` returned into the slots; the steps.

    ValueError, and nothing changed, if it does not fit.
    """
    steps, kept = state.get("steps"), state.get("state")
    if not isinstance(steps, int) or steps < 0 or not isinstance(kept, dict):
        raise ValueError(
            "load_state_dict: the votes' state must hold a number of steps and a dict of states, "
            f"got {steps!r} and {type(kept).__name__}"
        )
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
    return steps


def origin(rank: int, size: int, seed: int, compressor: str) -> dict[str, Any]:
    """Whose a state is, for checkpoints."""
    return {"rank": rank, "size": size, "seed": seed, "compressor": compressor}


def warn_of_origin(loaded: dict[str, Any], own: dict[str, Any]) -> None:
    """Warns if a state of another rank, or of other settings, was loaded."""
    differ = [key for key in own if loaded.get(key, own[key]) != own[key]]
    if differ:
        was, now = (", ".join(f"{key} {x[key]}" for key in differ) for x in (loaded, own))
        warnings.warn(
            f"the votes' state that was loaded is of {was}, not of {now}: momenta and residuals "
            "are each rank's own, so every rank saves and loads a checkpoint of its own",
            stacklevel=2,
        )


def _copy(value: Any, device: torch.device | None = None) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return value.detach().to(device or value.device, copy=True)
