"""What a run of ``mpisign train`` was asked for."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from mpisign import policies
from mpisign.compressors import COMPRESSORS, Compressor, Lion, Sign, Signum

Attack = Literal["sign-flip", "reverse"]
#: What a hostile rank multiplies its loss, hence its gradient, by.
ATTACKS: dict[str, float] = {"sign-flip": -1.0, "reverse": -100.0}

#: The learning rate of votes, unless told.
VOTE_LR = 2e-3


@dataclass(frozen=True)
class Settings:
    """The options, resolved. ``batch_size`` is per rank; ``steps`` wins over ``epochs``."""

    ways: tuple[str, ...] = ()
    compression: str = "signum"
    data: Path | None = None
    epochs: int = 15
    steps: int | None = None
    batch_size: int = 16
    lr: float | None = None
    fp32_lr: float = 0.1
    momentum: float = 0.9
    seed: int = 0
    zeros: policies.Zeros = policies.DEFAULT_ZEROS
    ties: policies.Ties = policies.DEFAULT_TIES
    algorithm: policies.Algorithm = "alltoall"  # bytes are compared: auto goes by time
    adversaries: int = 0
    attack: Attack = "reverse"
    json: Path | None = None
    plot: Path | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON: paths as text."""
        return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()}

    def compressor(self) -> Compressor:
        """What is voted on. Votes take ``zeros`` and ``ties``, signum ``momentum``."""
        kind = COMPRESSORS[self.compression]
        if kind is Signum:
            return Signum(momentum=self.momentum, zeros=self.zeros, ties=self.ties)
        return kind(zeros=self.zeros, ties=self.ties) if kind in (Sign, Lion) else kind()

    def vote_lr(self) -> float:
        """``lr``, or one that fits what the compressor's updates are the size of."""
        if self.lr is not None:
            return self.lr
        # fp32 has a momentum that sums gradients up to so many times their size.
        return VOTE_LR if self.compressor().unit == "sign" else self.fp32_lr / (1 - self.momentum)

    def loss_scale(self, rank: int, size: int) -> float:
        """1, or what the attack multiplies by if ``rank`` is one of the last ``adversaries``."""
        return ATTACKS[self.attack] if rank >= size - self.adversaries else 1.0
