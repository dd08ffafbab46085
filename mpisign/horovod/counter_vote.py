"""Votes as counters that Horovod's own allreduce sums, also where ranks call ``hvd.join``."""

from __future__ import annotations

import torch

from mpisign import planes, policies
from mpisign.compressors import COMPRESSORS, Detox, NoisySign, Sign, Sparsign, StochasticSign
from mpisign.compressors.base import PackContext, State
from mpisign.errors import WireError
from mpisign.horovod import roll_call
from mpisign.horovod.count_bytes import count_ring
from mpisign.horovod.process_set_engine import ranks_of
from mpisign.horovod.slots import named_by_optimizers
from mpisign.horovod.vote import VoteCompression
from mpisign.planes import counters
from mpisign.stats import stage

_STATELESS = (Sign, Sparsign, NoisySign, StochasticSign)
_COUNTED = ("vote", "gathered_vote")  # aggregates that counts of votes determine

_Context = tuple[torch.Tensor, torch.device, int]  # the gradient's meta tensor, its device, p


class CounterVote(VoteCompression):
    """The compression without named parameters: 64 / digits(p) bits per coordinate, 3.05 at p = 4.

    Wire, float64 in one allreduce per gradient: roll call (``roll_call``), counters of negative
    votes, and under zeros="abstain" or nan="abstain" counters of votes cast. Exact under op=Average
    (with any predivide factor) and op=Sum. Ranks that have called ``hvd.join`` do not vote.

    Args:
        compressor: one that votes; any other is for ``mpisign.horovod.DistributedOptimizer``.
        seed: of the random bits for zeros and ties, equal on all ranks.
        process_set: the optimizer's.

    Raises:
        NaNError, DisagreementError: from ``step()``, the same on every rank.
        WireError: from ``step()``, if the reduction was neither a sum nor a mean.
        TypeError: from ``backward()``, for a compressor whose aggregate is no count of votes.

    Example:
        >>> import horovod.torch as hvd
        >>> hvd.init()
        >>> vote = CounterVote(Sign())
        >>> vote.decompress(*vote.compress(torch.tensor([5.0, -3.0, 0.1])))
        tensor([ 1., -1.,  1.])
    """

    def compress(self, tensor: torch.Tensor) -> tuple[torch.Tensor, _Context]:
        c = self.compressor
        if c.aggregate not in _COUNTED or isinstance(c, Detox):
            names = {kind: name for name, kind in COMPRESSORS.items()}
            name = names.get(type(c), type(c).__name__)
            raise TypeError(
                f"Compression.{name}: Horovod's allreduce cannot count what it sends. Give it the "
                f"parameters, Compression.{name}(model.named_parameters()), or use "
                "mpisign.horovod.DistributedOptimizer"
            )
        self._check(tensor)
        size, rank, length = self._size(), self.process_set.rank(), tensor.numel()
        head, width = roll_call.n_words(size), counters.n_words(length, size)
        state, k = self._state_of(tensor), policies.planes_up(c.zeros, c.nan)
        payload = torch.empty(head + k * width, dtype=torch.float64)
        words = payload.numpy()
        with stage("pack"):
            ballots = torch.empty(k, planes.plane_bytes(length), dtype=torch.uint8)
            nans = self._pack(tensor, state, ballots if k == 2 else ballots[0], rank)
            for i, plane in enumerate(ballots.numpy()):
                at = head + i * width
                counters.encode(plane, length, size, out=words[at : at + width])
        roll_call.write(
            words[:head],
            rank,
            size,
            clock=self.step,
            config_digest=f"counters {length} {size} {self.seed} {c!r}",
            nan=nans > 0 and c.nan == "raise",
        )
        self.step += 1
        count_ring(words.nbytes, size)
        return payload, (torch.empty_like(tensor, device="meta"), tensor.device, size)

    def decompress(self, tensor: torch.Tensor, ctx: _Context | None) -> torch.Tensor:
        if ctx is None:
            self._refuse_sparse()
        c, (like, device, size) = self.compressor, ctx
        where = f"Compression (a gradient of shape {tuple(like.shape)})"
        words = tensor.detach().cpu().numpy()
        head, width = roll_call.n_words(size), counters.n_words(like.numel(), size)
        roll = roll_call.read(words[:head], size, where)
        roll_call.check(roll, where, ranks_of(self.process_set))
        abstentions = policies.planes_up(c.zeros, c.nan) == 2
        tied = c.ties == "random" and (abstentions or len(roll.voters) % 2 == 0)
        with stage("vote"):
            result, bad = counters.decode(
                words[head : head + width],
                words[head + width :] if abstentions else None,
                like.numel(),
                size,
                len(roll.voters),
                unscale=roll.unscale,
                ties=c.ties,
                # Ranks share no name and no count of calls here, only the reduced words.
                seed=counters.seed_of(words, roll.unscale, self.seed) if tied else 0,
            )
        if bad:
            raise WireError(f"{where}: {bad} reduced words are no sum of votes")
        with stage("unpack"):
            rows = torch.from_numpy(result)
            vote = torch.empty(like.shape, dtype=like.dtype)
            planes.unpack(rows if len(rows) == 2 else rows[0], out=vote)
            if like.is_contiguous():
                return vote.to(device)
            return torch.empty_like(like, device=device).copy_(vote)

    def _pack(self, tensor: torch.Tensor, state: State, out: torch.Tensor, rank: int) -> int:
        """Packs this rank's vote into ``out``, (B,) or (2, B); returns the number of NaNs."""
        c = self.compressor
        context = PackContext(self.seed, self.step, rank)
        if c.aggregate == "gathered_vote":  # which keeps no state on the tensor's device
            tensor = tensor.detach().cpu()
        if tensor.device.type == "cpu":
            return c.pack([tensor], [state], out, [0], context)
        voted = c.pre_sign(c.compress(tensor, state), context, 0).detach().cpu()
        _, _, nans = planes.pack_census(
            voted, zeros=c.zeros, nan=c.nan, offset=0, out=out, **context.keys
        )
        return int(nans)

    def _state_of(self, tensor: torch.Tensor) -> State:
        if isinstance(self.compressor, _STATELESS):
            return {}
        slot = self.slots.find(tensor)
        if slot is None:
            self.slots.add(named_by_optimizers(self))
            slot = self.slots.find(tensor)
        if slot is None:
            raise TypeError(
                f"{type(self.compressor).__name__}: this tensor is no parameter's .grad, so its "
                "momentum cannot be found (sparse_as_dense=True, or hvd.allreduce called directly)."
                " Use Compression.sign, or give this the model.named_parameters(), with dense "
                "gradients"
            )
        return slot.state
