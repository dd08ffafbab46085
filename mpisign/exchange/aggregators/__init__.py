"""What becomes of a bucket of gradients in one step: one way of aggregating a file."""

from __future__ import annotations

import importlib

from mpisign.compressors.base import Compressor
from mpisign.exchange.aggregators.base import Aggregator
from mpisign.exchange.parameter_slot import ParameterSlot

__all__ = ["ParameterSlot", "Aggregator", "of"]

_ROUNDS = {
    "vote": ("vote", "VoteAggregator"),
    "average": ("average", "AverageAggregator"),
    "halves": ("bf16_mean", "BF16MeanAggregator"),
    "mean_of_signs": ("mean_of_signs", "MeanOfSignsAggregator"),
    "gathered_vote": ("gathered", "GatheredVote"),
    "gathered_mean": ("gathered", "GatheredMean"),
    "robust": ("robust", "RobustAggregator"),
    "detox_robust": ("detox", "DetoxAggregator"),
    "compressed_mean": ("compressed_mean", "CompressedMeanAggregator"),
}


def of(compressor: Compressor) -> type[Aggregator]:
    """The round that aggregates what ``compressor`` sends."""
    module, name = _ROUNDS[compressor.aggregate]
    return getattr(importlib.import_module(f"mpisign.exchange.aggregators.{module}"), name)  # type: ignore[no-any-return]
