"""mpisign: one-bit gradient collectives for Horovod, MPI and torch.

``import mpisign`` imports NumPy and one C extension. What needs torch, mpi4py or Horovod imports
them when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

try:
    import_module("mpisign._kernels")
except ImportError as e:
    raise ImportError(
        f"mpisign's C kernels cannot be loaded ({e}). In a checkout they must be built first: "
        f"scripts/setup, or pip install -e {__file__.removesuffix('/mpisign/__init__.py')}"
    ) from e

from mpisign.errors import TORCH
from mpisign.planes import majority, pack, unpack
from mpisign.stats import stats
from mpisign.stopping import request_stop, stop_on_signals, stop_requested

if TYPE_CHECKING:
    from mpisign.accordion import AccordionBatch, next_epoch
    from mpisign.collectives.compressed_mean_state import CompressedMeanState
    from mpisign.collectives.counts import Tally
    from mpisign.collectives.traffic import VoteTraffic, vote_traffic
    from mpisign.communicator import Communicator
    from mpisign.compressors import Compression
    from mpisign.functions import (
        compressed_mean,
        majority_vote,
        majority_vote_async,
        mean_of_signs,
        robust_aggregate,
        tally,
        tally_async,
    )
    from mpisign.optimizer import DistributedOptimizer, takes_part, unwrap

__version__ = "0.1.0"
__all__ = [
    "AccordionBatch",
    "Communicator",
    "CompressedMeanState",
    "Compression",
    "DistributedOptimizer",
    "Tally",
    "VoteTraffic",
    "compressed_mean",
    "majority",
    "majority_vote",
    "majority_vote_async",
    "mean_of_signs",
    "next_epoch",
    "pack",
    "request_stop",
    "robust_aggregate",
    "stats",
    "stop_on_signals",
    "stop_requested",
    "takes_part",
    "tally",
    "tally_async",
    "unpack",
    "unwrap",
    "vote_traffic",
]

_LAZY = {
    "AccordionBatch": "mpisign.accordion",
    "Communicator": "mpisign.communicator",
    "CompressedMeanState": "mpisign.collectives.compressed_mean_state",
    "Compression": "mpisign.compressors",
    "DistributedOptimizer": "mpisign.optimizer",
    "Tally": "mpisign.collectives.counts",
    "VoteTraffic": "mpisign.collectives.traffic",
    "compressed_mean": "mpisign.functions",
    "majority_vote": "mpisign.functions",
    "majority_vote_async": "mpisign.functions",
    "mean_of_signs": "mpisign.functions",
    "next_epoch": "mpisign.accordion",
    "robust_aggregate": "mpisign.functions",
    "takes_part": "mpisign.optimizer",
    "tally": "mpisign.functions",
    "tally_async": "mpisign.functions",
    "unwrap": "mpisign.optimizer",
    "vote_traffic": "mpisign.collectives.traffic",
}


_MODULES = ("attacks", "checkpoint", "detox", "federated", "log", "lowrank", "optim", "robust")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"mpisign.{name}")
    if name not in _LAZY:
        raise AttributeError(f"module 'mpisign' has no attribute {name!r}")
    try:
        value = getattr(import_module(_LAZY[name]), name)
    except ModuleNotFoundError as e:
        if e.name != "torch":
            raise
        raise ImportError(f"mpisign.{name} needs torch: {TORCH}") from e
    globals()[name] = value
    return value
