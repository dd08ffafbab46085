"""Signum: the sign of the momentum, of all of it or of its largest coordinates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from mpisign import planes
from mpisign.compressors.base import Compressor, PackContext, State, get_or_init
from mpisign.compressors.checks import check_density, check_fraction, check_one_of
from mpisign.compressors.density import keep_largest

if TYPE_CHECKING:
    import torch

MomentumDtype = Literal["float32", "bfloat16"]


class Momentum(Compressor):
    """A compressor of votes with a momentum of its own on each rank, of ``momentum_dtype``.

    ``density``: the share of each tensor's coordinates that vote, those of the largest |x|, x what
    ``compress`` returns. None: all.
    """

    momentum_dtype: MomentumDtype
    density: float | None = None
    remembers: ClassVar[bool] = True

    def _check(self, *betas: str) -> None:
        check_fraction(self, *betas)
        dtypes = get_args(MomentumDtype)
        check_one_of(self, "momentum_dtype", dtypes, "'float32' or 'bfloat16'")
        if check_density(self):  # planes that are worth coding go to all ranks
            object.__setattr__(self, "aggregate", "gathered_vote")

    def _momentum(self, state: State, grad: torch.Tensor) -> torch.Tensor:
        return get_or_init(state, "momentum", grad, self.momentum_dtype)

    def _pack(self, grads: Any, states: Any, context: PackContext, keys: Any) -> Any:
        if self.density is not None:
            largest = [
                keep_largest(self.compress(g, state), self.density, offset=8 * at, **context.keys)
                for g, state, at in zip(grads, states, keys["offsets"], strict=True)
            ]
            return planes.pack_sparsign(largest, budget=1.0, **keys)[2]
        momenta = [self._momentum(state, g) for g, state in zip(grads, states, strict=True)]
        return self._fused(grads, momenta, zeros=self.zeros, nan=self.nan, **keys)[2]

    def _fused(self, grads: Any, momenta: Any, **keys: Any) -> Any:
        """The function of ``planes`` that packs and updates the momenta in one pass."""
        raise NotImplementedError

    def initial_state(self, parameter: torch.Tensor) -> State:
        state: State = {}
        self._momentum(state, parameter)
        return state

    def warm_up(self, grad: torch.Tensor | None, mean: torch.Tensor, state: State) -> None:
        if grad is not None:
            self.compress(grad.detach(), state)

    def compress_missing(self, parameter: torch.Tensor, state: State) -> torch.Tensor:
        m = state.get("momentum")
        return super().compress_missing(parameter, state) if m is None else m


@dataclass(frozen=True)
class Signum(Momentum):
    """m = b m + (1 - b) g; sign(m), by majority vote.

    State: ``momentum``, of the gradient's shape, the rank's own. NaN and infinity vote once, by the
    policies, and do not enter the momentum. Source: Bernstein et al. 2019, signSGD with majority
    vote, Algorithm 1.

    Args:
        momentum: b, in [0, 1).
        momentum_dtype: "float32" or "bfloat16", whatever the gradient's dtype.
        density: In (0, 1]: about this share of each tensor's coordinates vote, those with the
            largest |m| on this rank, by a threshold from a sample of at most 16,384; exact zeros
            never vote. Planes are Golomb-coded and go to all ranks. m stays as it is: what was sent
            is not taken out of it. None or 1: all vote, in one plane.
        zeros, nan, ties: As ``Compressor``; with a density below 1 zeros abstain and ties are zero.

    Example:
        >>> import torch
        >>> state = {}
        >>> _ = Signum(momentum=0.5).compress(torch.tensor([4.0]), state)
        >>> Signum(momentum=0.5).compress(torch.tensor([-1.0]), state)
        tensor([0.5000])
    """

    momentum: float = 0.9
    momentum_dtype: MomentumDtype = "float32"
    density: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("momentum")

    def _fused(self, grads: Any, momenta: Any, **keys: Any) -> Any:
        return planes.pack_signum(grads, momenta, beta=self.momentum, **keys)

    def compress(self, grad: torch.Tensor, state: State) -> torch.Tensor:
        m = self._momentum(state, grad)
        new = m.float() * self.momentum + grad.detach().float() * (1.0 - self.momentum)
        stored = new.to(m.dtype)
        m.copy_(stored.where(stored.isfinite(), m))
        return stored
