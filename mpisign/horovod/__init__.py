"""Votes under Horovod: our optimizer, and compressions for Horovod's own. See docs/horovod.md."""

from __future__ import annotations

try:
    import horovod.torch  # noqa: F401
except ImportError as error:
    raise ImportError(
        "mpisign.horovod needs torch and horovod 0.28.1 built with PyTorch: scripts/setup builds "
        'them, or pip install "mpisign[horovod]" where horovod compiles'
    ) from error

from mpisign.horovod import one_rank
from mpisign.horovod.bucket_vote import BucketVote
from mpisign.horovod.compression import Compression
from mpisign.horovod.count_bytes import CountBytes
from mpisign.horovod.counter_vote import CounterVote
from mpisign.horovod.optimizer import DistributedOptimizer

__all__ = ["BucketVote", "Compression", "CountBytes", "CounterVote", "DistributedOptimizer"]

one_rank.install()
