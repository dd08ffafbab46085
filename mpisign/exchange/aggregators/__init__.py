"""What aggregates a bucket of gradients over the ranks in one step: one aggregator a file."""

from __future__ import annotations

from mpisign.compressors.base import Compressor
from mpisign.exchange.aggregators.average import AverageAggregator
from mpisign.exchange.aggregators.base import Aggregator
from mpisign.exchange.aggregators.bf16_mean import BF16MeanAggregator
from mpisign.exchange.aggregators.compressed_mean import CompressedMeanAggregator
from mpisign.exchange.aggregators.detox import DetoxAggregator
from mpisign.exchange.aggregators.gathered import GatheredMean, GatheredVote
from mpisign.exchange.aggregators.low_mean import LowAverage, LowHalves
from mpisign.exchange.aggregators.mean_of_signs import MeanOfSignsAggregator
from mpisign.exchange.aggregators.polar_vote import PolarVoteAggregator
from mpisign.exchange.aggregators.robust import RobustAggregator
from mpisign.exchange.aggregators.vote import VoteAggregator
from mpisign.exchange.aggregators.warm_up import WarmUpAggregator as WarmUpAggregator

_AGGREGATORS: dict[str, type[Aggregator]] = {
    "vote": VoteAggregator,
    "polar_vote": PolarVoteAggregator,
    "average": AverageAggregator,
    "halves": BF16MeanAggregator,
    "low_halves": LowHalves,
    "low_average": LowAverage,
    "mean_of_signs": MeanOfSignsAggregator,
    "gathered_vote": GatheredVote,
    "gathered_mean": GatheredMean,
    "robust": RobustAggregator,
    "detox_robust": DetoxAggregator,
    "compressed_mean": CompressedMeanAggregator,
}


def aggregator_for(compressor: Compressor) -> type[Aggregator]:
    """What aggregates what ``compressor`` sends."""
    return _AGGREGATORS[compressor.aggregate]
