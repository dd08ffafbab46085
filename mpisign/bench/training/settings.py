"""What a run of ``mpisign bench training`` was asked for."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

Mode = Literal["step", "accuracy", "tune", "memory"]


@dataclass(frozen=True)
class Settings:
    """The options, resolved. ``batch_size`` is per rank, ``lr`` by the names of ways.

    ``started``: what the launcher started this process for; ``rank``: as it says.
    """

    mode: Mode
    ways: tuple[str, ...]
    parameters: int
    layers: int
    init: str
    batch_size: int
    steps: int
    warm_up: int
    repeat: int
    accuracy: float
    seeds: int
    every: int
    time_limit: float
    json: Path | None
    plot: Path | None
    markdown: Path | None
    started: str
    rank: int
    lr: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: paths as text."""
        return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()}
