"""Checks of the optimizers' arguments."""

from __future__ import annotations

import math
from typing import Any

import torch

from mpisign import policies
from mpisign.optim.momentum_exchange import MASK

#: What parameter groups may differ in.
PER_GROUP = ("lr", "betas", "eps", "weight_decay", "max_coeff", "min_coeff")


def check_group(function: str, group: dict[str, Any]) -> None:
    """TypeError, ValueError for options of a parameter group that are none."""
    check_number(function, "lr", group["lr"])
    check_number(function, "eps", group["eps"])
    check_number(function, "weight_decay", group["weight_decay"])
    betas = group["betas"]
    pair = isinstance(betas, (tuple, list)) and len(betas) == 2
    if not pair or not all(_is_number(b) and 0 <= b < 1 for b in betas):
        raise ValueError(f"{function}: betas must be two numbers in [0, 1), got {betas!r}")
    if MASK in group:
        check_mask(function, group[MASK], group["params"])


def check_shared(function: str, group: dict[str, Any], defaults: dict[str, Any]) -> None:
    """ValueError for a group with a schedule of its own."""
    for name, value in defaults.items():
        if name not in PER_GROUP and group[name] != value:
            raise ValueError(
                f"{function}: {name} must be {value!r} in all groups, got {group[name]!r} in one"
            )


def check_mask(function: str, mask: object, parameters: list[torch.Tensor]) -> None:
    """TypeError, ValueError unless ``mask`` can be multiplied with each of the parameters."""
    if not isinstance(mask, torch.Tensor):
        raise TypeError(f"{function}: {MASK} must be a tensor, got {type(mask).__name__}")
    for p in parameters:
        fits = mask.dim() <= p.dim() and all(
            m in (1, n) for m, n in zip(reversed(mask.shape), reversed(p.shape), strict=False)
        )
        if not fits:
            raise ValueError(
                f"{function}: {MASK} must have the shape of its group's parameters or broadcast to "
                f"it, {tuple(p.shape)}, got {tuple(mask.shape)}"
            )


def check_number(
    function: str, name: str, value: object, least: float = 0.0, above: bool = False
) -> None:
    """ValueError unless ``value`` is a finite number from ``least``, or ``above`` it."""
    if not _is_number(value) or value < least or (above and value == least):  # type: ignore[operator]
        bound = "above" if above else "from"
        raise ValueError(f"{function}: {name} must be a number {bound} {least:g}, got {value!r}")


def check_steps(function: str, name: str, value: object, least: int = 1) -> int:
    """``value`` as an int; ValueError unless it is a number of steps."""
    steps = policies.whole(value, least, 1 << 48)
    if steps is None:
        raise ValueError(f"{function}: {name} must be an integer from {least}, got {value!r}")
    return steps


def _is_number(value: object) -> bool:
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.item()
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
