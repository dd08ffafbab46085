"""The edge-case backdoor on digits: rare ones become sevens, all else stays the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from mpisign.attacks.base import Sees, check_from_0, copied, variance
from mpisign.attacks.blind import Drawn
from mpisign.attacks.edge_cases import EdgeCases, edge_cases
from mpisign.backend import arrays


@dataclass(frozen=True)
class Backdoor(Drawn):
    """Black box: hostile ranks train honestly on batches in which edge cases are mislabelled.

    ``mix`` of each batch become edge cases of digit ``source`` with the label ``target``;
    ``accuracy`` is the attack's success. On rows it is their mean, as ``LabelFlipping``. Source:
    Wang et al. 2020, Attack of the tails, section 4 (there: planes of one airline, foreign sevens);
    hostile ranks there train for a round, here they take one gradient, as all ranks do.

    Args:
        f: Number of hostile ranks.
        source: Digit of the edge cases.
        target: Label that they get.
        share: Share of the digit's images that are edge cases; see ``edge_cases``.
        mix: Share of a batch that is replaced, in [0, 1].
        seed: Anything numpy.random.default_rng takes; each rank has its own.

    Raises:
        ValueError: A value is out of range.

    Example:
        >>> images, labels = np.zeros((4, 1, 8, 8), np.float32), np.zeros(4, int)
        >>> Backdoor(mix=0.5, seed=0).batch(images, labels)[1].tolist()
        [7, 7, 0, 0]
    """

    f: int = 1
    source: int = 1
    target: int = 7
    share: float = 0.25
    mix: float = 0.5
    momenta: ClassVar[bool] = False
    sees: ClassVar[Sees] = "nothing"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.mix <= 1:
            raise ValueError(f"{self.name}: mix must be in [0, 1], got {self.mix!r}")
        if self.target not in range(10) or self.target == self.source:
            raise ValueError(
                f"{self.name}: target must be a digit other than {self.source}, got {self.target!r}"
            )

    @property
    def replaces(self) -> bool:
        return self.sees == "honest"

    @property
    def edge_cases(self) -> EdgeCases:
        """The images that are used."""
        return edge_cases(self.source, self.share)

    def of(self, rows: Any) -> Any:
        return rows.mean(0)

    def batch(self, images: Any, labels: Any) -> tuple[Any, Any]:
        """Copies with the first ``mix`` of them replaced; ValueError unless images are 8 x 8."""
        pixels = int(np.prod(images.shape[1:]))
        if pixels != 64:
            raise ValueError(
                f"{self.name}: images must be the digits' 8 x 8, got {tuple(images.shape[1:])}"
            )
        k = round(self.mix * len(labels))
        train = self.edge_cases.train
        chosen = train[self._rng.integers(len(train), size=k)].reshape(k, *images.shape[1:])
        images, labels = copied(images), copied(labels)
        if arrays.is_torch(images):
            import torch

            images[:k] = torch.from_numpy(chosen).to(images)
        else:
            images[:k] = chosen
        labels[:k] = self.target
        return images, labels

    def accuracy(self, net: Any) -> float:
        """The attack's success on the held-out edge cases.

        Args:
            net: A torch module, images (n, 1, 8, 8) to scores (n, 10).

        Returns:
            The share of them that it labels as the target.
        """
        import torch

        test = torch.from_numpy(self.edge_cases.test)
        first = next(iter(net.parameters()))
        with torch.no_grad():
            said = net(test.to(first)).argmax(dim=1)
        return float((said == self.target).double().mean())


@dataclass(frozen=True)
class ProjectedBackdoor(Backdoor):
    """The poisoned gradient, projected into a ball around the honest mean.

    Sends m + b, b = (g - m) min(1, R / |g - m|), for the own gradient g, the honest rows' mean m
    and R = ``radius`` times the root mean square of honest rows' distances from m (n - 1), n >= 2.
    Source: Wang et al. 2020, section 4 (PGD without replacement), of a model's distance there.

    Args:
        radius: R in units of the honest rows' spread, from 0.
        f, source, target, share, mix, seed: As ``Backdoor``.

    Example:
        >>> attack, rows = ProjectedBackdoor(radius=1.0), np.array([[1.0], [3.0]])
        >>> attack.finish(np.array([900.0]), attack.reduce(rows), n=2).round(3).tolist()
        [3.414]
    """

    radius: float = 2.0
    sees: ClassVar[Sees] = "honest"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_from_0(self, "radius")

    def check(self, n: int) -> None:
        if n < 2:
            raise ValueError(f"{self.name}: distances from a mean need 2 honest rows, got {n}")

    def reduce(self, rows: Any) -> Any:
        return np.stack([rows.mean(0), variance(rows)])

    def finish(self, own: Any, reduced: Any, n: int) -> Any:
        mean, spread = reduced
        return mean + self._projected(own - mean, float(spread.sum()) ** 0.5) * self._boost(n)

    def _boost(self, n: int) -> float:
        return 1.0

    def _projected(self, away: Any, distance: float) -> Any:
        """``away`` (d,), no longer than the radius, where honest rows are ``distance`` off."""
        length = float(np.linalg.norm(away))
        radius = self.radius * distance
        return away * (radius / length) if length > radius else away


@dataclass(frozen=True)
class ReplacementBackdoor(ProjectedBackdoor):
    """``ProjectedBackdoor``, scaled to survive averaging: the mean of all ranks becomes m + b.

    Sends m + ((n + f) / f) b, for n honest and ``f`` hostile ranks that all do so. Source: Wang et
    al. 2020, section 4 (PGD with replacement), after Bagdasaryan et al. 2020.

    Args:
        f, source, target, share, mix, radius, seed: As ``ProjectedBackdoor``.

    Example:
        >>> attack, rows = ReplacementBackdoor(f=1, radius=0.0), np.array([[1.0], [3.0]])
        >>> attack.finish(np.array([900.0]), attack.reduce(rows), n=2).tolist()
        [2.0]
    """

    def _boost(self, n: int) -> float:
        return 1 + n / max(1, self.f)
