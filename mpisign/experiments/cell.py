"""``Cell``: the settings of one training, and the key that its result is recorded under."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

#: The compressor with groups, whose members get one batch.
GROUPED = "detox"
#: What distinguishes cells of one method, besides rate and seed.
AXES = ("ranks", "batch_size", "dirichlet", "adversaries", "attack", "placement")
#: Fields that were added later; at these values they are left out of what is hashed.
_LATER: dict[str, Any] = {
    "placement": None,
    "lying_owners": 0,
    "byzantine_f": 0,
    "algorithm": "auto",
    "recipe": "exchange",
    "recipe_options": {},
    "participation": 1.0,
}


@dataclass(frozen=True)
class Cell:
    """Settings of one training: ``steps`` or ``epochs`` is set; the last ranks are hostile."""

    task: str
    compressor: str
    lr: float
    ranks: int = 1
    batch_size: int = 1
    seed: int = 0
    steps: int | None = None
    epochs: int | None = None
    task_options: dict[str, Any] = field(default_factory=dict)
    compressor_options: dict[str, Any] = field(default_factory=dict)
    optimizer: str = "sgd"
    optimizer_options: dict[str, Any] = field(default_factory=dict)
    dirichlet: float | None = None
    adversaries: int = 0
    attack: str | None = None
    schedule: str = "constant"
    warmup: float = 0.0
    evaluations: int = 6
    skip: str = "none"
    placement: str | None = None
    lying_owners: int = 0
    byzantine_f: int = 0
    algorithm: str = "auto"
    recipe: str = "exchange"
    recipe_options: dict[str, Any] = field(default_factory=dict)
    participation: float = 1.0

    @cached_property
    def key(self) -> str:
        """16 hexadecimal digits of SHA-256 over all settings; labels are not among them."""
        text = json.dumps(self.as_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def as_dict(self) -> dict[str, Any]:
        """For JSON; ``Cell(**d)`` makes it again."""
        table = asdict(self)
        return {k: v for k, v in table.items() if k not in _LATER or v != _LATER[k]}

    def recorded(self) -> dict[str, Any]:
        """The same without what is at its default, except the seed."""
        default = Cell(self.task, self.compressor, self.lr).as_dict()
        always = ("task", "compressor", "lr", "seed")
        return {k: v for k, v in self.as_dict().items() if k in always or v != default.get(k)}

    @property
    def name(self) -> str:
        """The cell in words, for progress."""
        parts = [f"{self.task} {self.compressor} lr {self.lr:g}", f"{self.ranks} ranks"]
        if self.task != "quadratic":
            parts.append(f"batch {self.batch_size}")
        if self.dirichlet is not None:
            parts.append(f"alpha {self.dirichlet:g}")
        if self.participation < 1:
            parts.append(f"{self.participation:g} of the ranks")
        if self.adversaries:
            parts.append(f"{self.adversaries} {self.attack}")
        return ", ".join([*parts, f"seed {self.seed}"])

    @property
    def hostile(self) -> range:
        """The hostile ranks: the last ``adversaries``."""
        return range(self.ranks - self.adversaries, self.ranks)

    def rate(self, step: int, steps: int) -> float:
        """The learning rate at ``step`` of ``steps``: a linear warm-up, then the schedule."""
        rising = math.ceil(self.warmup * steps)
        if step < rising:
            return self.lr * (step + 1) / rising
        if self.schedule == "constant":
            return self.lr
        if self.schedule == "stairs":
            return (
                self.lr * (0.1 if 2 * step >= steps else 1) * (0.1 if 6 * step >= 5 * steps else 1)
            )
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - rising) / (steps - rising)))
