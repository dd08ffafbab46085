"""What optimizers and compressors keep of a weight, as they would of its factors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from mpisign.lowrank.matrix import Matrix

#: Sums of gradients: the chain rule applies to them as to each gradient.
SUMS = ("momentum_buffer", "exp_avg", "momentum", "residual", "center")
#: Sums of squared gradients: the same with squared factors, as if coordinates were independent.
SQUARES = ("exp_avg_sq", "max_exp_avg_sq")


def projected(state: dict[str, Any], x: Matrix) -> tuple[dict[str, Any], dict[str, Any]]:
    """The states of U and V, each stacked as (parts, ..).

    For W = U V the gradients are G_U = G_W V' and G_V = U' G_W, so a sum S of gradients becomes
    S V' and U' S, and a sum Q of squares Q (V o V)' and (U o U)' Q. What has not the weight's shape
    (a count of steps) is copied. ({}, {}), a new start, if anything else is in the state.
    """
    of_u: dict[str, Any] = {}
    of_v: dict[str, Any] = {}
    u, v = x.u.float(), x.v.float()
    for key, value in state.items():
        if not isinstance(value, torch.Tensor) or value.numel() == 1 < x.weight.numel():
            of_u[key], of_v[key] = value, value
            continue
        if value.shape != x.weight.shape or key not in SUMS + SQUARES:
            return {}, {}
        s = x.blocks(value.detach()).to(u.device, torch.float32)
        left, right = (u * u, v * v) if key in SQUARES else (u, v)
        of_u[key] = (s @ right.mT).to(value.device, value.dtype)
        of_v[key] = (left.mT @ s).to(value.device, value.dtype)
    return of_u, of_v


def tensors(state: dict[str, Any]) -> list[torch.Tensor]:
    """The stacked ones, in an order that is the same on all ranks."""
    return [state[k] for k in sorted(state) if k in SUMS + SQUARES and _is_stacked(state[k])]


def _is_stacked(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() == 3


def of_thin(
    x: Matrix, of_u: dict[str, Any], of_v: dict[str, Any]
) -> Iterator[tuple[torch.nn.Parameter, dict[str, Any]]]:
    """Each new parameter, and its own copy of its part of the states."""
    for i, pair in enumerate(x.thin):
        for p, state in zip(pair, (of_u, of_v), strict=True):
            yield p, {k: _part(value, p, i, len(x.thin)) for k, value in state.items()}


def _part(value: Any, p: torch.Tensor, i: int, many: int) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    if not _is_stacked(value):
        return value.clone()
    return (value[i] if many > 1 else value).reshape(p.shape).clone()


def layout(state: dict[str, Any]) -> list[tuple[str, str]]:
    """Names, and kinds, shapes and dtypes or values: what must be the same on all ranks."""
    return [
        (k, f"{tuple(v.shape)} {v.dtype}" if isinstance(v, torch.Tensor) else repr(v))
        for k, v in sorted(state.items())
    ]
