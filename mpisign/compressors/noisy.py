"""Signs of noisy gradients: their mean knows of magnitudes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from mpisign.compressors.base import Compressor, PackContext, State, positive

if TYPE_CHECKING:
    import torch

Noise = Literal["normal", "uniform"]


class _Noisy(Compressor):
    """sign(g + s xi). xi are the rank's own, float32, of NumPy's Philox: key (seed, 0), counter
    from (0, place, step, rank), place the coordinates before the tensor in its bucket."""

    def _noise(self) -> tuple[float, Noise]:
        """(s, the distribution of xi)."""
        raise NotImplementedError

    def compress(self, grad: torch.Tensor, state: State) -> torch.Tensor:
        return grad

    def pre_sign(self, x: torch.Tensor, context: PackContext, place: int) -> torch.Tensor:
        import torch

        s, kind = self._noise()
        counter = np.array([0, place, context.step, context.rank], dtype=np.uint64)
        key = np.array([context.seed, 0], dtype=np.uint64)
        generator = np.random.Generator(np.random.Philox(key=key, counter=counter))
        if kind == "normal":
            xi = generator.standard_normal(tuple(x.shape), dtype=np.float32)
        else:
            xi = generator.random(tuple(x.shape), dtype=np.float32)
            xi = 2 * xi - np.float32(1)
        noise = torch.from_numpy(np.asarray(xi)).to(x.device)
        return noise.mul_(s).add_(x.detach().float())


@dataclass(frozen=True)
class NoisySign(_Noisy):
    """sign(g + s xi), xi normal or uniform in [-1, 1); no state; the majority of these votes.

    ``scale``: s, in units of the gradient: about its standard deviation. Noise that is large
    against the gradient has a rank's vote lean towards + by about g / s: unequal data then does not
    flip the majority, for more variance. Noise costs as much time as NumPy needs for it.

    Source: Chen et al. 2020, Distributed training with heterogeneous data: bridging median- and
    mean-based algorithms (Noisy signSGD); Tang et al. 2023, z-SignFedAvg (z = 1: normal, z =
    infinity: uniform).
    """

    scale: float = 0.01
    noise: Noise = "normal"

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "scale")
        if self.noise not in get_args(Noise):
            raise ValueError(
                f"NoisySign: noise must be one of 'normal', 'uniform', got {self.noise!r}"
            )

    def _noise(self) -> tuple[float, Noise]:
        return self.scale, self.noise


@dataclass(frozen=True)
class StochasticSign(_Noisy):
    """+ with probability 1/2 + g / (2 b), at most 1, else -: sign(g + b u), u uniform in [-1, 1).

    ``bound``: b, at least the largest |g| if the sum of votes is to be unbiased. No state.

    Source: Safaryan and Richtarik 2021, Stochastic sign descent methods, Section 5 (whose b is a
    rank's norm); Jin et al. 2020, Stochastic-sign SGD for federated learning, Definition 1.
    """

    bound: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "bound")

    def _noise(self) -> tuple[float, Noise]:
        return self.bound, "uniform"
