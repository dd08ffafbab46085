"""The edge-case backdoor on digits: rare ones become sevens, all else stays as it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from mpisign.attacks.base import Attack, Sees, variance
from mpisign.attacks.blind import Seed
from mpisign.attacks.edge_cases import EdgeCases, edge_cases
from mpisign.backend import arrays


@dataclass(frozen=True)
class Backdoor(Attack):
    """Black box: hostile ranks learn, honestly, from batches in which edge cases are mislabelled.

    ``mix`` of each batch become edge cases of digit ``source`` (see ``edge_cases``; ``share``)
    under the label ``target``. ``accuracy`` is the attack's success. ``f``: how many hostile ranks
    there are; ``seed``: of the draws. As an object on rows: their mean, as ``LabelFlipping``.
    Source: Wang et al. 2020, Attack of the tails, section 4 (there: planes of one airline, foreign
    sevens); hostile ranks there train for a round, here they take one gradient, as all ranks do.
    """

    f: int = 1
    source: int = 1
    target: int = 7
    share: float = 0.25
    mix: float = 0.5
    seed: Seed = field(default=None, kw_only=True, repr=False)  # a rank's own
    _rng: np.random.Generator = field(init=False, repr=False, compare=False)
    momenta: ClassVar[bool] = False
    sees: ClassVar[Sees] = "nothing"

    def __post_init__(self) -> None:
        if not 0 <= self.mix <= 1:
            raise ValueError(f"{self.name}: mix must be in [0, 1], got {self.mix!r}")
        if self.target not in range(10) or self.target == self.source:
            raise ValueError(
                f"{self.name}: target must be a digit other than {self.source}, got {self.target!r}"
            )
        object.__setattr__(self, "_rng", np.random.default_rng(self.seed))

    @property
    def replaces(self) -> bool:
        return self.sees == "honest"

    @property
    def edge_cases(self) -> EdgeCases:
        """The images."""
        return edge_cases(self.source, self.share)

    def of(self, rows: Any) -> Any:
        return rows.mean(0)

    def batch(self, images: Any, labels: Any) -> tuple[Any, Any]:
        """Copies, the first ``mix`` of them replaced; ValueError unless images are 8 x 8."""
        pixels = int(np.prod(images.shape[1:]))
        if pixels != 64:
            raise ValueError(
                f"{self.name}: images must be the digits' 8 x 8, got {tuple(images.shape[1:])}"
            )
        k = round(self.mix * len(labels))
        train = self.edge_cases.train
        chosen = train[self._rng.integers(len(train), size=k)].reshape(k, *images.shape[1:])
        if arrays.is_torch(images):
            import torch

            images, labels = images.clone(), labels.clone()
            images[:k] = torch.from_numpy(chosen).to(images)
        else:
            images, labels = images.copy(), labels.copy()
            images[:k] = chosen
        labels[:k] = self.target
        return images, labels

    def accuracy(self, net: Any) -> float:
        """Share of the held-out edge cases that ``net``, a torch module, takes for the target."""
        import torch

        test = torch.from_numpy(self.edge_cases.test)
        first = next(iter(net.parameters()))
        with torch.no_grad():
            said = net(test.to(first)).argmax(dim=1)
        return float((said == self.target).double().mean())


@dataclass(frozen=True)
class ProjectedBackdoor(Backdoor):
    """The poisoned gradient, projected into a ball round the honest mean: no farther than others.

    Sends m + b, b = (g - m) min(1, R / |g - m|), of the own gradient g, the honest rows' mean m and
    R = ``radius`` times the root mean square of honest rows' distances from m (n - 1); n from 2.
    Source: Wang et al. 2020, section 4 (PGD without replacement), of a model's distance there.
    """

    radius: float = 2.0
    sees: ClassVar[Sees] = "honest"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.radius >= 0:
            raise ValueError(f"{self.name}: radius must be at least 0, got {self.radius!r}")

    def check(self, n: int) -> None:
        if n < 2:
            raise ValueError(f"{self.name}: distances from a mean need 2 honest rows, got {n}")

    def reduce(self, rows: Any) -> Any:
        return np.stack([rows.mean(0), variance(rows)])

    def finish(self, own: Any, reduced: Any, n: int) -> Any:
        mean, spread = reduced
        return mean + self._beside(own - mean, float(spread.sum()) ** 0.5)

    def _beside(self, away: Any, distance: float) -> Any:
        """``away`` (d,), no longer than the radius, where honest rows are ``distance`` off."""
        length = float(np.linalg.norm(away))
        radius = self.radius * distance
        return away * (radius / length) if length > radius else away


@dataclass(frozen=True)
class ReplacementBackdoor(ProjectedBackdoor):
    """The projected one, scaled so that it survives averaging: the mean of all becomes m + b.

    Sends m + ((n + f) / f) b, of n honest and ``f`` hostile ranks that all do so.
    Source: Wang et al. 2020, section 4 (PGD with replacement), after Bagdasaryan et al. 2020.
    """

    def finish(self, own: Any, reduced: Any, n: int) -> Any:
        mean, spread = reduced
        return mean + self._beside(own - mean, float(spread.sum()) ** 0.5) * (
            1 + n / max(1, self.f)
        )
