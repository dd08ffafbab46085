"""State of compressors in checkpoints: one entry a parameter, by name."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any

import torch

from mpisign.exchange.parameter_slot import ParameterSlot

#: What begins so belongs to a bucket or a rank, and has a shape of its own.
FREE = "owner_"
#: Whose state it is: a dict of rank, size, seed, compressor.
OF = "of"
#: In an optimizer's own state: the steps, and a tensor of one rank's.
_STEPS = "mpisign_steps"
_KEY = re.compile(r"mpisign_rank(\d+)_of_(\d+)_(\w+)")


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


def add_to_optimizer(
    states: dict[Any, Any], saved: dict[str, Any], names: dict[int, str], initial: dict[str, Any]
) -> dict[Any, Any]:
    """An optimizer's "state" with the votes' in it, where torch.distributed.checkpoint finds it.

    ``names``: of the parameters, by their numbers. Keys hold the rank, so that each rank's tensors
    are saved; "mpisign_steps" is every parameter's. ``initial``: state of those that have none,
    which tells a checkpoint to be loaded what to look for.
    """
    if OF not in saved:
        return states
    prefix = f"mpisign_rank{saved[OF]['rank']}_of_{saved[OF]['size']}_"
    result = dict(states)
    for number, name in names.items():
        if not name:
            continue
        kept = saved["state"].get(name) or initial.get(name, {})
        tensors = {prefix + k: v for k, v in kept.items() if isinstance(v, torch.Tensor)}
        result[number] = {**states.get(number, {}), _STEPS: saved["steps"], **tensors}
    return result


def take_from_optimizer(
    states: dict[Any, Any], names: dict[Any, str], rank: int, size: int
) -> tuple[dict[Any, Any], dict[str, Any] | None]:
    """The inverse of ``add_to_optimizer``: the optimizer's "state", and the votes', if any is there.

    Of several ranks' tensors those of ``rank`` of ``size`` count, else those of the lowest rank.
    """
    rest: dict[Any, Any] = {}
    kept: dict[tuple[int, int], dict[str, Any]] = {}
    steps = None
    for number, state in states.items():
        own = {}
        for key, value in state.items() if isinstance(state, dict) else ():
            if key == _STEPS:
                steps = int(value)
            elif (match := _KEY.fullmatch(str(key))) and names.get(number):
                of = int(match[1]), int(match[2])
                kept.setdefault(of, {}).setdefault(names[number], {})[match[3]] = value
            else:
                own[key] = value
        if own or not isinstance(state, dict) or not state:
            rest[number] = own if isinstance(state, dict) else state
    if steps is None:
        return states, None
    of = (rank, size) if (rank, size) in kept or not kept else min(kept)
    found = {"rank": of[0], "size": of[1]}
    return rest, {"steps": steps, "state": kept.get(of, {}), OF: found}


def _copy(value: Any, device: torch.device | None = None) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return value.detach().to(device or value.device, copy=True)
