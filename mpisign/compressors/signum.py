"""Signum: the sign of the momentum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from mpisign import planes
from mpisign.compressors.base import Compressor, PackContext, State, get_or_init

if TYPE_CHECKING:
    import torch

MomentumDtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Signum(Compressor):
    """m = b m + (1 - b) g; sign(m) (Bernstein et al. 2019, majority vote, Algorithm 1).

    ``state["momentum"]`` has the gradient's shape, is of ``momentum_dtype`` whatever the gradient's
    dtype, and never leaves the rank. Where NaN or infinity would enter it, it stays as it was: a
    NaN stops or abstains once, infinity votes once, and each would do so for ever.
    """

    momentum: float = 0.9
    momentum_dtype: MomentumDtype = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        momentum_fits(self, ("momentum",), self.momentum_dtype)

    def pack(
        self,
        grads: Sequence[torch.Tensor],
        states: Sequence[State],
        out: Any,
        offsets: Sequence[int],
        context: PackContext,
    ) -> int:
        if not grads:
            return 0
        _, _, nans = planes.pack_signum(
            grads,
            [
                get_or_init(state, "momentum", g, self.momentum_dtype)
                for g, state in zip(grads, states, strict=True)
            ],
            beta=self.momentum,
            zeros=self.zeros,
            nan=self.nan,
            **context.keys,
            offsets=offsets,
            out=out,
        )
        return int(nans)

    def compress(self, grad: torch.Tensor, state: State) -> torch.Tensor:
        m = get_or_init(state, "momentum", grad, self.momentum_dtype)
        new = m.float() * self.momentum + grad.detach().float() * (1.0 - self.momentum)
        stored = new.to(m.dtype)
        m.copy_(stored.where(stored.isfinite(), m))
        return stored

    def compress_missing(self, parameter: torch.Tensor, state: State) -> torch.Tensor:
        m = state.get("momentum")
        return super().compress_missing(parameter, state) if m is None else m


def momentum_fits(compressor: Compressor, betas: Sequence[str], dtype: str) -> None:
    """ValueError unless the fields ``betas`` are in [0, 1) and ``dtype`` is a MomentumDtype."""
    name = type(compressor).__name__
    for field in betas:
        beta = getattr(compressor, field)
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"{name}: {field} must be in [0, 1), got {beta!r}")
    if dtype not in get_args(MomentumDtype):
        raise ValueError(f"{name}: momentum_dtype must be 'float32' or 'bfloat16', got {dtype!r}")
