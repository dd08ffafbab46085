"""What becomes of a bucket of gradients in one step: one way of aggregating a file."""

from __future__ import annotations

import importlib

from mpisign.compressors.base import Compressor
from mpisign.rounds.base import Round
from mpisign.rounds.member import Member

__all__ = ["Member", "Round", "of"]

_ROUNDS = {
    "vote": ("vote", "VoteRound"),
    "average": ("average", "AverageRound"),
    "halves": ("halves", "HalvesRound"),
    "mean_of_signs": ("mean_of_signs", "MeanOfSignsRound"),
    "gathered_vote": ("gathered", "GatheredVote"),
    "gathered_mean": ("gathered", "GatheredMean"),
    "robust": ("robust", "RobustRound"),
    "detox_robust": ("detox", "DetoxRound"),
    "compressed_mean": ("compressed_mean", "CompressedMeanRound"),
}


def of(compressor: Compressor) -> type[Round]:
    """The round that aggregates what ``compressor`` sends."""
    module, name = _ROUNDS[compressor.aggregate]
    return getattr(importlib.import_module(f"mpisign.rounds.{module}"), name)  # type: ignore[no-any-return]
