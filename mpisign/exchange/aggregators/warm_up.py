"""The plain fp32 averages of the first steps, while compressors get to know the gradients."""

from __future__ import annotations

from typing import ClassVar

import torch

from mpisign.engine.header import Header
from mpisign.exchange.aggregators.average import AverageAggregator
from mpisign.exchange.parameter_slot import ParameterSlot


class WarmUpAggregator(AverageAggregator):
    """The mean of all ranks' gradients, whatever the bucket's compressor, which sees them too.

    NaN raises on all ranks under nan="raise", else it counts as zero.
    """

    operation: ClassVar[str] = "warm_up"

    def begin(self, header: Header, message: int) -> None:
        super().begin(header, message)
        if self.compressor.nan == "raise":
            grads = [m.grad.detach() for m in self.slots if m.grad is not None]
            header.nans = max(header.nans, sum(int(g.isnan().sum()) for g in grads))

    def _sent(self, m: ParameterSlot) -> torch.Tensor | None:
        sent = super()._sent(m)
        if sent is None:
            return None
        return sent.nan_to_num_(nan=0.0, posinf=torch.inf, neginf=-torch.inf)

    def _received(self, m: ParameterSlot, mean: torch.Tensor) -> None:
        self.compressor.warm_up(m.grad, mean, m.state)
        super()._received(m, mean)
