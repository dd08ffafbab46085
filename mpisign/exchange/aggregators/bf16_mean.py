"""The average of what travels as bfloat16, the same bits on every rank."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch

from mpisign.compressors.uncompressed import BF16Mean
from mpisign.engine.agreement import Agreed
from mpisign.engine.engine import Engine
from mpisign.engine.header import Header
from mpisign.exchange.aggregators.base import Aggregator
from mpisign.exchange.parameter_slot import ParameterSlot
from mpisign.stats import stage
from mpisign.transports.base import Steps
from mpisign.transports.tagged import TaggedTransport


class BF16MeanAggregator(Aggregator):
    """The mean of gradients rounded to bfloat16, rounded to bfloat16.

    Wire: shard r of the n coordinates, [n r // p, n (r + 1) // p), goes to rank r, 2 bytes a
    coordinate, little-endian; rank r adds up in fp32, by rank, divides by p, and sends its shard of
    the mean to all. 4 n (1 - 1/p) bytes each way. A missing gradient counts as zeros. NaN raises on
    all ranks under nan="raise"; else it and infinity reach all ranks alike.
    """

    operation: ClassVar[str] = "halves"

    def begin(self, header: Header, message: int) -> None:
        super().begin(header, message)
        with stage("pack"):
            flat = [self._sent(m).to("cpu", torch.bfloat16).reshape(-1) for m in self.slots]
            self._own = torch.cat(flat)
            nans = int(self._own.isnan().sum())
        header.nans = max(header.nans, nans)

    def _sent(self, m: ParameterSlot) -> torch.Tensor:
        if m.grad is None:
            return self.compressor.compress_missing(m.parameter.detach(), m.state)
        return m.grad.detach()

    def steps(
        self, engine: Engine, wire: TaggedTransport, agreed: Agreed, number: int, anywhere: Any
    ) -> Steps[None]:
        own = self._own.view(torch.uint8).numpy()
        n, p = self._own.numel(), wire.size
        bounds = [n * r // p for r in range(p + 1)]
        shards = [slice(2 * a, 2 * b) for a, b in zip(bounds, bounds[1:], strict=False)]
        mine = shards[wire.rank]
        rows = np.empty((p, mine.stop - mine.start), dtype=np.uint8)
        rows[wire.rank] = own[mine]
        others = wire.others
        yield wire.exchange([(r, own[shards[r]]) for r in others], [(r, rows[r]) for r in others])
        with stage("vote"):
            total = torch.zeros(rows.shape[1] // 2)
            for row in rows.view(np.int16):  # which torch can view, also where it is empty
                total += torch.from_numpy(row).view(torch.bfloat16).float()
            mean = (total / self.voters).to(torch.bfloat16)
        result = np.empty(2 * n, dtype=np.uint8)
        yield wire.allgather(mean.view(torch.uint8).numpy(), [result[s] for s in shards])
        engine.replicas.add(number, result)
        with stage("unpack"):
            self._unpack(torch.from_numpy(result).view(torch.bfloat16), anywhere)

    def _unpack(self, mean: torch.Tensor, anywhere: Any) -> None:
        assert isinstance(self.compressor, BF16Mean)
        if self.compressor.signs:
            mean = mean.sign()
        for i, part in enumerate(mean.split(list(self.bucket.lengths))):
            if anywhere[i]:
                m = self.slots[i]
                self._received(m, part.view(m.parameter.shape))

    def _received(self, m: ParameterSlot, mean: torch.Tensor) -> None:
        m.target().copy_(mean)
