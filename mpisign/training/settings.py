"""What a run of ``mpisign train`` was asked for."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mpisign import policies
from mpisign.compressors import COMPRESSORS, Compressor, Lion, Sign, Signum

if TYPE_CHECKING:
    from mpisign.communicator import Communicator
    from mpisign.detox import Groups

Placement = Literal["spread", "packed", "worst"]
PLACEMENTS: tuple[Placement, ...] = ("spread", "packed", "worst")
Order = Literal["random", "flipflop"]
ORDERS: tuple[Order, ...] = ("random", "flipflop")

#: The learning rate of votes, unless told.
VOTE_LR = 2e-3


@dataclass(frozen=True)
class Settings:
    """The options, resolved. ``batch_size`` is per rank; ``steps`` wins over ``epochs``.

    ``detox``: ranks of a group, None for no groups; ``reshuffle_every``: epochs to a draw of them,
    0 for never. ``rule``: of ``mpisign.robust``, which gradients in full precision are aggregated
    by instead of a vote; ``rule_f``: how many hostile rows it is to stand.
    """

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
    byzantine_f: int = 0
    detox: int | None = None
    placement: Placement = "spread"
    order: Order = "random"
    reshuffle_every: int = 1
    rule: str | None = None
    rule_f: int | None = None
    adversaries: int = 0
    attack: str = "reverse"
    suspects: bool | None = None
    json: Path | None = None
    plot: Path | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON: paths as text."""
        return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()}

    def hostile(self, size: int) -> range:
        """Which of ``size`` ranks are: the last ``adversaries``."""
        return range(size - self.adversaries, size)

    def groups(self, comm: Communicator) -> Groups | None:
        """The groups of DETOX, drawn for epoch 0; ValueError for those that cannot be."""
        if self.detox is None:
            return None
        from mpisign.detox import Groups
        from mpisign.detox.worst_case import worst_case

        if self.placement == "worst":
            partition = worst_case(comm.size, self.detox, self.hostile(comm.size))
            return Groups(comm, self.detox, partition, seed=self.seed)
        drawn = self.placement == "spread" and self.reshuffle_every > 0
        return Groups(
            comm,
            self.detox,
            self.placement,
            reshuffle_every=self.reshuffle_every if drawn else None,
            seed=self.seed,
        )

    def faulty_rows(self) -> int:
        """How many rows ``rule`` is to stand: ``rule_f``, or as many as the adversaries can own.

        They own a group of DETOX by a majority of its ranks.
        """
        if self.rule_f is not None:
            return self.rule_f
        return self.adversaries // (1 if self.detox is None else self.detox // 2 + 1)

    @property
    def rank_momentum(self) -> float:
        """The momentum that ranks put on gradients before they send them."""
        if self.rule is not None:
            # In groups momenta would start from zero after every draw.
            return self.momentum if self.detox is None else 0.0
        return self.momentum if self.compression == "signum" else 0.0

    def compressor(self, groups: Groups | None = None) -> Compressor:
        """What ways that vote send. Votes take ``zeros`` and ``ties``, signum ``momentum``.

        ``groups``: those that DETOX filters in. ValueError for what cannot be.
        """
        inner = self._inner()
        if groups is None:
            return inner
        from mpisign.compressors import Detox

        return Detox(inner=inner, groups=groups)

    def _inner(self) -> Compressor:
        if self.rule is not None:
            from mpisign.compressors.robust import Robust

            return Robust(rule=self.rule, f=self.faulty_rows(), momentum=self.rank_momentum)
        kind = COMPRESSORS[self.compression]
        if kind is Signum:
            return Signum(momentum=self.momentum, zeros=self.zeros, ties=self.ties)
        return kind(zeros=self.zeros, ties=self.ties) if kind in (Sign, Lion) else kind()

    def rates(self, votes: bool) -> tuple[float, float]:
        """Learning rate and momentum of the torch optimizer, of a way that votes or averages."""
        if not votes or (self.rule is not None and not self.rank_momentum):
            return (self.lr if votes and self.lr is not None else self.fp32_lr), self.momentum
        return self.vote_lr(), 0.0

    def vote_lr(self) -> float:
        """``lr``, or one that fits what the compressor's updates are the size of."""
        if self.lr is not None:
            return self.lr
        # fp32 has a momentum that sums gradients up to so many times their size.
        unit = self._inner().unit
        return VOTE_LR if unit == "sign" else self.fp32_lr / (1 - self.momentum)
