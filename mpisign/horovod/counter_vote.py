"""Votes as counters that Horovod's own allreduce sums: nothing to tell it, hvd.join included."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mpisign import planes
from mpisign.compressors import NoisySign, Sign, Sparsign, StochasticSign
from mpisign.compressors.base import State
from mpisign.errors import WireError
from mpisign.horovod import roll_call
from mpisign.horovod.members import named_by_optimizers
from mpisign.horovod.vote import Like, VoteCompression
from mpisign.planes import counters
from mpisign.stats import stage, stats

_STATELESS = (Sign, Sparsign, NoisySign, StochasticSign)


@dataclass(frozen=True)
class _Context:
    like: Like
    size: int


class CounterVote(VoteCompression):
    """``compression=`` without named parameters: 64 / digits(p) bits per coordinate, 3.05 at p = 4.

    Wire, float64 in one allreduce per gradient: roll call, counters of negative votes, and under
    zeros="abstain" or nan="abstain" counters of votes cast. Exact under op=Average (any predivide
    factor) and op=Sum. Ranks that have called ``hvd.join`` do not vote.

    Raises, the same on every rank: NaNError, DisagreementError, WireError (a reduction that is
    neither sum nor mean).
    """

    def compress(self, tensor: torch.Tensor) -> tuple[torch.Tensor, _Context]:
        like, size, rank = self._like(tensor), self._size(), self.process_set.rank()
        state = self._state_of(tensor)
        head, width = roll_call.n_words(size), counters.n_words(like.length, size)
        payload = torch.empty(head + self._planes_up * width, dtype=torch.float64)
        words = payload.numpy()
        with stage("pack"):
            nbytes = planes.plane_bytes(like.length)
            ballots = torch.empty(self._planes_up, nbytes, dtype=torch.uint8)
            nans = self._pack(tensor, state, ballots, 0, self.step)
            for k, plane in enumerate(ballots.numpy()):
                at = head + k * width
                counters.encode(plane, like.length, size, out=words[at : at + width])
        roll_call.write(
            words[:head],
            rank,
            size,
            clock=self.step,
            creed=f"counters {like.length} {size} {self.seed} {self.compressor!r}",
            nan=nans > 0 and self.compressor.nan == "raise",
        )
        self.step += 1
        ring = 2 * (size - 1) * words.nbytes // size
        stats().add("exchange", sent=ring, received=ring)
        return payload, _Context(like, size)

    def decompress(self, tensor: torch.Tensor, ctx: _Context | None) -> torch.Tensor:
        if ctx is None:
            self._refuse_sparse()
        like, size = ctx.like, ctx.size
        where = f"Compression (a gradient of shape {like.shape})"
        words = tensor.detach().cpu().numpy()
        head, width = roll_call.n_words(size), counters.n_words(like.length, size)
        roll = roll_call.read(words[:head], size, where)
        roll_call.check(roll, where, self._ranks())
        ties = self.compressor.ties
        with stage("vote"):
            result, bad = counters.decode(
                words[head : head + width],
                words[head + width :] if self._planes_up == 2 else None,
                like.length,
                size,
                len(roll.voters),
                unscale=roll.unscale,
                ties=ties,
                seed=self._tie_seed(words, roll),
            )
        if bad:
            raise WireError(f"{where}: {bad} words came back that are no sum of votes")
        with stage("unpack"):
            return like.unpacked(torch.from_numpy(result))

    def _tie_seed(self, words: np.ndarray[Any, Any], roll: roll_call.RollCall) -> int:
        # No name and no common count of calls: what was reduced is all that ranks share.
        tied = self._planes_up == 2 or len(roll.voters) % 2 == 0
        if self.compressor.ties != "random" or not tied:
            return 0
        return counters.seed_of(words, roll.unscale, self.seed)

    def _state_of(self, tensor: torch.Tensor) -> State:
        if isinstance(self.compressor, _STATELESS):
            return {}
        member = self.members.find(tensor)
        if member is None:
            self.members.add(named_by_optimizers(self))
            member = self.members.find(tensor)
        if member is None:
            raise TypeError(
                f"{type(self.compressor).__name__}: this tensor is no parameter's .grad, so its "
                "momentum cannot be found (sparse_as_dense=True, or hvd.allreduce called directly)."
                " Use Compression.sign, or give this the model.named_parameters(), with dense "
                "gradients"
            )
        return member.state
