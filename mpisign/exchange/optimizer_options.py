"""An optimizer's options: what compressors need, and what must be equal on all ranks."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from typing import Any

import torch

from mpisign import launcher
from mpisign.compressors.base import Compressor

_NUMBERS = (bool, int, float, type(None))


def rates_of(optimizer: torch.optim.Optimizer) -> dict[torch.Tensor, float]:
    """Every parameter's learning rate, 1 where its group has none."""
    return {p: float(g.get("lr", 1.0)) for g in optimizer.param_groups for p in g["params"]}


def options_of(compressor: Compressor, optimizer: torch.optim.Optimizer | None = None) -> int:
    """64 bits of BLAKE2b: another learning rate on one rank would part the replicas."""
    options: list[Any] = []
    for group in [] if optimizer is None else optimizer.param_groups:
        options += _texts(group)
    return _digest(f"{compressor!r} {options!r}")


def options_of_steppers(compressor: Compressor, optimizers: Sequence[torch.optim.Optimizer]) -> int:
    """The same for those that were seen to step, whatever part of the parameters each holds.

    torch's ZeroRedundancyOptimizer steps through another one, of this rank's share.
    """
    groups = {
        repr([pair for pair in _texts(group) if pair[0] != "params"])
        for o in optimizers
        for group in o.param_groups
    }
    return _digest(f"{compressor!r} {sorted(groups)!r}")


def _texts(group: dict[str, Any]) -> list[tuple[str, str]]:
    # Most values are numbers, whose text is the same on every rank.
    return [(k, repr(v) if type(v) in _NUMBERS else _plain(k, v)) for k, v in sorted(group.items())]


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def check_plain(function: str, optimizer: torch.optim.Optimizer) -> None:
    """ValueError for one of mpisign.optim, on top of which votes would be cast."""
    if hasattr(optimizer, "exchange_now"):
        raise ValueError(
            f"{function}: optimizer must not be {type(optimizer).__name__}, which exchanges by "
            "itself: use it as it is"
        )


#: Steps divided by the root of a mean square: of votes, that is 1.
_DIVIDE = (
    torch.optim.Adadelta,
    torch.optim.Adagrad,
    torch.optim.Adam,
    torch.optim.Adamax,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.RMSprop,
)


def warn_of_optimizer(
    function: str, compressor: Compressor, optimizer: torch.optim.Optimizer, stacklevel: int
) -> None:
    """Warns of what makes no sense on top of votes, on rank 0. ``stacklevel``: from the caller."""
    if compressor.unit != "sign" or not launcher.is_first():
        return
    if any(g.get("momentum") for g in optimizer.param_groups):
        warnings.warn(
            f"{function}: the optimizer has a momentum of its own, which sums votes up to steps "
            "many times the learning rate: take momentum=0, signum has its own",
            stacklevel=stacklevel + 1,
        )
    if isinstance(optimizer, _DIVIDE):
        warnings.warn(
            f"{function}: {type(optimizer).__name__} divides a coordinate by its usual size, and "
            "votes have one size: take torch.optim.SGD (mpisign.optim has Adam at one bit)",
            stacklevel=stacklevel + 1,
        )


def state_of(optimizer: torch.optim.Optimizer, p: torch.Tensor) -> list[Any]:
    """What the optimizer keeps of a parameter, tensors and numbers, in the order of their names."""
    state: dict[str, Any] = optimizer.state.get(p, {})
    return [
        state[key] for key in sorted(state) if isinstance(state[key], (torch.Tensor, int, float))
    ]


def _plain(key: str, value: Any) -> str:
    """An option as text that is the same on every rank; "" for what has no such text."""
    if key == "params":
        return str(len(value))
    if isinstance(value, torch.Tensor):
        return repr(value.tolist())
    if isinstance(value, (tuple, list)):
        return f"[{','.join(_plain('', v) for v in value)}]"
    return repr(value) if isinstance(value, (bool, int, float, str, type(None))) else ""
