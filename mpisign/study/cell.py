"""One training of a grid: everything it depends on, and the key that its result is found by."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

SCHEDULES = ("constant", "cosine")
ATTACKS = ("sign-flip", "reverse", "random")
#: What tells cells of one method apart, beside rate and seed.
AXES = ("ranks", "batch_size", "dirichlet", "adversaries", "attack")


@dataclass(frozen=True)
class Cell:
    """Settings of one training. ``batch_size`` is per rank; either ``steps`` or ``epochs`` is set.

    ``dirichlet``: the concentration of labels over ranks, None for shuffled data. The last
    ``adversaries`` ranks are hostile. ``seed`` makes model, shards, batches, attacks, random bits.
    ``skip``: as of ``mpisign.DistributedOptimizer``, "none" or "auto".
    """

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

    @cached_property
    def key(self) -> str:
        """16 hexadecimal digits of SHA-256 over all settings; labels are none of them."""
        text = json.dumps(self.as_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def as_dict(self) -> dict[str, Any]:
        """For JSON; ``Cell(**d)`` makes it again."""
        return asdict(self)

    def told(self) -> dict[str, Any]:
        """The same without what is as by default, but for the seed; for a file of many."""
        default = Cell(self.task, self.compressor, self.lr).as_dict()
        always = ("task", "compressor", "lr", "seed")
        return {k: v for k, v in self.as_dict().items() if k in always or v != default[k]}

    def hostile(self, rank: int) -> bool:
        """Whether ``rank`` is one of the last ``adversaries``."""
        return rank >= self.ranks - self.adversaries

    def rate(self, step: int, steps: int) -> float:
        """The learning rate at ``step`` of ``steps``: up in a line at first, then the schedule."""
        rising = math.ceil(self.warmup * steps)
        if step < rising:
            return self.lr * (step + 1) / rising
        if self.schedule == "constant":
            return self.lr
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - rising) / (steps - rising)))
