"""A vote on matrices, each of which becomes its polar factor on every rank."""

from __future__ import annotations

from typing import ClassVar

from mpisign.compressors.muon import Muon
from mpisign.exchange.aggregators.vote import VoteAggregator
from mpisign.stats import stage


class PolarVoteAggregator(VoteAggregator):
    """The vote, then ``Muon.step_of`` of each matrix. Wire: as ``VoteAggregator``.

    All ranks compute all matrices, by arithmetic that gives the same bits on every machine. Shares
    of the matrices would be an exchange of 32 bits a coordinate after a vote of 2.
    """

    operation: ClassVar[str] = "bucket_polar_vote"

    def _complete(self) -> None:
        assert isinstance(self.compressor, Muon)
        with stage("unpack"):
            for slot, there in zip(self.slots, self._anywhere, strict=True):
                if there:
                    vote = slot.target()
                    vote.copy_(self.compressor.step_of(vote))
