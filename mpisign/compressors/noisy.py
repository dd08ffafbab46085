"""Signs of noisy gradients: their mean depends on the gradient's size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

import numpy as np

from mpisign.compressors.base import PackContext
from mpisign.compressors.checks import check_one_of, check_positive
from mpisign.compressors.sign import Sign

if TYPE_CHECKING:
    import torch

Noise = Literal["normal", "uniform"]


class _Noisy(Sign):
    """sign(g + s xi). xi are the rank's own, float32, of NumPy's Philox: key (seed, 0), counter
    from (0, place, step, rank), place the coordinates before the tensor in its bucket."""

    remembers: ClassVar[bool] = True

    def _noise(self) -> tuple[float, Noise]:
        """(s, the distribution of xi)."""
        raise NotImplementedError

    def pre_sign(self, x: torch.Tensor, context: PackContext, place: int) -> torch.Tensor:
        import torch

        s, kind = self._noise()
        counter = np.array([0, place, context.step, context.rank], dtype=np.uint64)
        key = np.array([context.seed, 0], dtype=np.uint64)
        generator = np.random.Generator(np.random.Philox(key=key, counter=counter))
        if kind == "normal":
            xi = generator.standard_normal(tuple(x.shape), dtype=np.float32)
        else:
            xi = 2 * generator.random(tuple(x.shape), dtype=np.float32) - np.float32(1)
        noise = torch.from_numpy(np.asarray(xi)).to(x.device)
        return noise.mul_(s).add_(x.detach().float())


@dataclass(frozen=True)
class NoisySign(_Noisy):
    """sign(g + s xi), xi normal or uniform in [-1, 1), by majority vote; no state.

    With noise that is large against the gradient a rank's vote leans towards + by about g / s, so
    unequal data do not flip the majority, at the price of more variance. Source: Chen et al. 2020,
    Distributed training with heterogeneous data: bridging median- and mean-based algorithms (Noisy
    signSGD); Tang et al. 2023, z-SignFedAvg (z = 1: normal, z = infinity: uniform).

    Args:
        scale: s, in units of the gradient; about its standard deviation.
        noise: "normal" or "uniform".
        zeros, nan, ties: As ``Compressor``.

    Example:
        >>> import torch
        >>> c, context = NoisySign(scale=0.1), PackContext(seed=0, step=0, rank=0)
        >>> c.pre_sign(torch.tensor([5.0, -5.0]), context, place=0).sign()
        tensor([ 1., -1.])
    """

    scale: float = 0.01
    noise: Noise = "normal"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "scale")
        check_one_of(self, "noise", get_args(Noise), "one of 'normal', 'uniform'")

    def _noise(self) -> tuple[float, Noise]:
        return self.scale, self.noise


@dataclass(frozen=True)
class StochasticSign(_Noisy):
    """+ with probability 1/2 + g / (2 b), at most 1, else -; by majority vote; no state.

    Computed as sign(g + b u), u uniform in [-1, 1). Source: Safaryan and Richtarik 2021, Stochastic
    sign descent methods, Section 5 (whose b is a rank's norm); Jin et al. 2020, Stochastic-sign SGD
    for federated learning, Definition 1.

    Args:
        bound: b, at least the largest |g| if the sum of votes is to be unbiased.
        zeros, nan, ties: As ``Compressor``.

    Example:
        >>> import torch
        >>> c, context = StochasticSign(bound=1.0), PackContext(seed=0, step=0, rank=0)
        >>> c.pre_sign(torch.tensor([1.0, -1.5]), context, place=0).sign()
        tensor([ 1., -1.])
    """

    bound: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "bound")

    def _noise(self) -> tuple[float, Noise]:
        return self.bound, "uniform"
