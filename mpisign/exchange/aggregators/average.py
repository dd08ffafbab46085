"""The plain fp32 average by the wire's allreduce."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch

from mpisign.engine.agreement import Agreed
from mpisign.engine.engine import Engine
from mpisign.exchange.aggregators.base import Aggregator
from mpisign.exchange.parameter_slot import ParameterSlot
from mpisign.transports.base import Steps
from mpisign.transports.tagged import TaggedTransport


class AverageAggregator(Aggregator):
    """The mean of all ranks' gradients, in float32 whatever their dtype.

    A missing gradient counts as zeros. NaN and infinity travel as they are, to all ranks alike.
    """

    operation: ClassVar[str] = "average"

    def steps(
        self, engine: Engine, wire: TaggedTransport, agreed: Agreed, number: int, anywhere: Any
    ) -> Steps[None]:
        lengths = self.bucket.lengths
        mean = np.zeros(sum(lengths), dtype=np.float32)
        parts = np.split(mean, np.cumsum(lengths)[:-1])
        for m, part in zip(self.slots, parts, strict=True):
            if (sent := self._sent(m)) is not None:
                part[:] = sent.reshape(-1).numpy()
        # An allreduce may block, so that ranks must come to those of a step's buckets in one order.
        yield engine.progress.turn(wire.tag)
        yield wire.allreduce(mean)
        mean /= np.float32(self.voters)
        for i, (m, part) in enumerate(zip(self.slots, parts, strict=True)):
            if anywhere[i]:
                self._received(m, torch.from_numpy(part).view(m.parameter.shape))

    def _sent(self, m: ParameterSlot) -> torch.Tensor | None:
        if m.grad is None:
            return None
        return m.grad.detach().to("cpu", torch.float32, copy=True)

    def _received(self, m: ParameterSlot, mean: torch.Tensor) -> None:
        m.target().copy_(mean)
