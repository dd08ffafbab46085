"""The means of layers that do not vote now: see ``compressors.accordion``."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from mpisign.exchange.aggregators.bf16_mean import BF16MeanAggregator
from mpisign.exchange.aggregators.warm_up import WarmUpAggregator
from mpisign.exchange.parameter_slot import ParameterSlot


class LowHalves(BF16MeanAggregator):
    """The mean in bfloat16 of what ``Low16`` sends; states change once it has come."""

    def _sent(self, m: ParameterSlot) -> torch.Tensor:
        low: Any = self.compressor
        sent: torch.Tensor = low.send(m.grad, m.parameter, m.state, m.rate)
        return sent

    def _received(self, m: ParameterSlot, mean: torch.Tensor) -> None:
        low: Any = self.compressor
        low.receive(m.grad, mean.float(), m.state, m.rate)
        super()._received(m, mean)


class LowAverage(WarmUpAggregator):
    """The mean in float32 of what ``Low32`` sends."""

    operation: ClassVar[str] = "average"

    def _sent(self, m: ParameterSlot) -> torch.Tensor:
        low: Any = self.compressor
        sent: torch.Tensor = low.send(m.grad, m.parameter, m.state, m.rate)
        return sent.cpu().nan_to_num_(nan=0.0, posinf=torch.inf, neginf=-torch.inf)

    def _received(self, m: ParameterSlot, mean: torch.Tensor) -> None:
        low: Any = self.compressor
        low.receive(m.grad, mean, m.state, m.rate)
        m.target().copy_(mean)
