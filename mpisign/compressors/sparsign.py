"""sparsign: large gradients vote more often."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from mpisign import planes, policies
from mpisign.compressors.base import Compressor, PackContext, State, abstains, positive

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Sparsign(Compressor):
    """sign(g) with probability min(1, B |g|), else no vote; the votes' majority, 0 where they tie.

    No state. The sum of votes is B times that of the gradients in expectation, as long as
    B |g| <= 1, so that ranks with unequal data do not outvote the mean. ``budget``: B, in 1 / g:
    the mean of B |g| is about the share of coordinates that vote. Zero and NaN never vote. Random
    numbers: see ``mpisign.planes.pack_sparsign``.

    Source: Jin et al. 2023, Magnitude matters: fixing SIGNSGD through magnitude-aware
    sparsification in the presence of data heterogeneity, Definition 1 and Algorithm 1.
    """

    budget: float = 10.0
    zeros: policies.Zeros = "abstain"
    ties: policies.Ties = "zero"

    aggregate: ClassVar[str] = "gathered_vote"

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "budget")
        abstains(self)

    def pack(
        self,
        grads: Sequence[torch.Tensor],
        states: Sequence[State],
        out: Any,
        offsets: Sequence[int],
        context: PackContext,
    ) -> int:
        if not grads:
            return 0
        _, _, nans = planes.pack_sparsign(
            grads,
            budget=self.budget,
            **context.keys,
            offsets=offsets,
            out=out,
        )
        return int(nans)
