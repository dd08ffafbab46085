"""Bytes of any Horovod compression in ``mpisign.stats``, to compare votes with."""

from __future__ import annotations

from typing import Any

import horovod.torch as hvd
import torch

from mpisign.stats import stats


class Booked:
    """``compression=Booked(hvd.Compression.fp16)``: the same, its allreduces booked.

    Books what the best ring allreduce sends and receives, 2 (p - 1) / p of the buffer, under stage
    "exchange"; seconds are not known, Horovod's own thread spends them.
    """

    def __init__(
        self,
        compression: Any = hvd.Compression.none,
        *,
        process_set: hvd.ProcessSet = hvd.global_process_set,
    ) -> None:
        self.compression = compression
        self.process_set = process_set

    def compress(self, tensor: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """What the wrapped compression sends."""
        sent, ctx = self.compression.compress(tensor)
        size = self.process_set.size()
        ring = 2 * (size - 1) * sent.numel() * sent.element_size() // size
        stats().add("exchange", sent=ring, received=ring)
        return sent, ctx

    def decompress(self, tensor: torch.Tensor, ctx: Any) -> torch.Tensor:
        """What the wrapped compression makes of the result."""
        result: torch.Tensor = self.compression.decompress(tensor, ctx)
        return result
