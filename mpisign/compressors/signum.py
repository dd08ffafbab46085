"""Signum: the sign of the momentum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from mpisign import planes
from mpisign.compressors.base import Compressor, State

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
        if not 0.0 <= self.momentum < 1.0:
            raise ValueError(f"Signum: momentum must be in [0, 1), got {self.momentum!r}")
        if self.momentum_dtype not in ("float32", "bfloat16"):
            raise ValueError(
                "Signum: momentum_dtype must be 'float32' or 'bfloat16', "
                f"got {self.momentum_dtype!r}"
            )

    def pack(
        self,
        grads: Sequence[torch.Tensor],
        states: Sequence[State],
        out: Any,
        offsets: Sequence[int],
        *,
        seed: int,
        step: int,
        rank: int,
    ) -> int:
        if not grads:
            return 0
        _, _, nans = planes.pack_signum(
            grads,
            [self._momentum(g, state) for g, state in zip(grads, states, strict=True)],
            beta=self.momentum,
            zeros=self.zeros,
            nan=self.nan,
            seed=seed,
            step=step,
            rank=rank,
            offsets=offsets,
            out=out,
        )
        return int(nans)

    def voted_on(self, grad: torch.Tensor, state: State) -> torch.Tensor:
        m = self._momentum(grad, state)
        new = m.float() * self.momentum + grad.detach().float() * (1.0 - self.momentum)
        stored = new.to(m.dtype)
        m.copy_(stored.where(stored.isfinite(), m))
        return stored

    def voted_on_without_gradient(self, parameter: torch.Tensor, state: State) -> torch.Tensor:
        m = state.get("momentum")
        return super().voted_on_without_gradient(parameter, state) if m is None else m

    def _momentum(self, grad: torch.Tensor, state: State) -> torch.Tensor:
        import torch

        dtype = getattr(torch, self.momentum_dtype)
        m = state.get("momentum")
        if m is None:
            m = state["momentum"] = torch.zeros(grad.shape, dtype=dtype, device=grad.device)
        elif m.dtype != dtype or not m.is_contiguous():  # saved by another version, or loaded so
            m = state["momentum"] = m.to(dtype).contiguous()
        return m
