"""sparsign: large gradients vote more often."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from mpisign import planes, policies
from mpisign.compressors.base import Compressor, PackContext
from mpisign.compressors.checks import check_abstains, check_positive

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Sparsign(Compressor):
    """sign(g) with probability min(1, B |g|), else no vote; majority of the votes, 0 for a tie.

    No state. While B |g| <= 1 the expected sum of votes is B times that of the gradients, so ranks
    with unequal data do not outvote the mean. Zero and NaN never vote. Random bits: see
    ``mpisign.planes.pack_sparsign``. Source: Jin et al. 2023, Magnitude matters: fixing SIGNSGD
    through magnitude-aware sparsification in the presence of data heterogeneity, Definition 1 and
    Algorithm 1.

    Args:
        budget: B, in 1 / g. The mean of B |g| is about the share of coordinates that vote.
        zeros, nan, ties: As ``Compressor``; zeros must be "abstain".

    Example:
        >>> import numpy as np, torch
        >>> from mpisign.compressors import PackContext
        >>> g, out = torch.tensor([0.0, -1.0, 2.0]), np.zeros((2, 1), np.uint8)
        >>> _ = Sparsign(budget=1.0).pack([g], [{}], out, [0], PackContext(0, 0, 0))
        >>> np.unpackbits(out, 1, 3, "little").tolist()  # sign, mask
        [[0, 1, 0], [0, 1, 1]]
    """

    budget: float = 10.0
    zeros: policies.Zeros = "abstain"
    ties: policies.Ties = "zero"

    aggregate: ClassVar[str] = "gathered_vote"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "budget")
        check_abstains(self)

    def _pack(self, grads: Any, states: Any, context: PackContext, keys: Any) -> Any:
        return planes.pack_sparsign(grads, budget=self.budget, **keys)[2]
