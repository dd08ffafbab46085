"""Counts the bytes of Horovod's own compressions in ``mpisign.stats``."""

from __future__ import annotations

from typing import Any

import horovod.torch as hvd
import torch

from mpisign.stats import stats


def count_ring(nbytes: int, size: int, calls: int = 1) -> None:
    """Counts what the best ring allreduce of ``nbytes`` sends and receives on one rank."""
    ring = 2 * (size - 1) * nbytes // size
    stats().add("exchange", calls=calls, sent=ring, received=ring)


class CountBytes:
    """Wraps a Horovod compression and counts the bytes of its allreduces.

    Counts 2 (p - 1) / p of each buffer, which the best ring allreduce sends and receives, under
    stage "exchange" of ``mpisign.stats``. Seconds are not counted: Horovod's own thread spends
    them.

    Args:
        compression: any Horovod compression, such as ``hvd.Compression.fp16``.
        process_set: the optimizer's.

    Example:
        >>> hvd.init()
        >>> compression = CountBytes(hvd.Compression.fp16)
        >>> half, ctx = compression.compress(torch.ones(1000))
        >>> compression.decompress(half, ctx).dtype
        torch.float32
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
        """Returns the tensor that the wrapped compression sends, and its context.

        Args:
            tensor: A gradient.
        """
        sent, ctx = self.compression.compress(tensor)
        count_ring(sent.numel() * sent.element_size(), self.process_set.size())
        return sent, ctx

    def decompress(self, tensor: torch.Tensor, ctx: Any) -> torch.Tensor:
        """Returns the gradient that the wrapped compression makes of the sum.

        Args:
            tensor: The sum over the ranks.
            ctx: The context from ``compress``.
        """
        result: torch.Tensor = self.compression.decompress(tensor, ctx)
        return result
