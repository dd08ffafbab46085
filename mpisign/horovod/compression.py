"""``Compression``: what a training script passes to ``hvd.DistributedOptimizer``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import horovod.torch as hvd
import torch

from mpisign.compressors import COMPRESSORS, Compressor
from mpisign.exchange.pending_step import ChangedVotes
from mpisign.exchange.skip import Rule
from mpisign.horovod.bucket_vote import BucketVote
from mpisign.horovod.counter_vote import CounterVote
from mpisign.horovod.vote import VoteCompression


class _DefaultVote(CounterVote):
    """A CounterVote with default settings; a call makes a compression with other settings."""

    def __init__(self, kind: type[Compressor]) -> None:
        super().__init__(kind())
        self._kind = kind
        self.__doc__ = kind.__doc__

    def __call__(
        self,
        named_parameters: Iterable[tuple[str, torch.Tensor]] | None = None,
        *,
        seed: int = 0,
        process_set: hvd.ProcessSet = hvd.global_process_set,
        skip: str | Rule | None = "auto",
        changed_votes: ChangedVotes = "raise",
        warmup_steps: int = 0,
        **settings: Any,
    ) -> VoteCompression:
        """Returns a BucketVote if ``named_parameters`` are given, else a CounterVote.

        ``settings``: the compressor's. ``skip``: only with named parameters.
        """
        compressor = self._kind(**settings)
        given: Any = {"seed": seed, "process_set": process_set, "changed_votes": changed_votes}
        given["warmup_steps"] = warmup_steps
        if named_parameters is None:
            return CounterVote(compressor, **given)
        return BucketVote(compressor, named_parameters, skip=skip, **given)


class Compression:
    """The compressions for ``hvd.DistributedOptimizer``: all of ``mpisign.Compression`` and fp16.

    ``compression=Compression.sign`` takes the defaults. A call takes the compressor's settings and
    these arguments. Without ``named_parameters`` the result is a ``CounterVote``, whose votes
    Horovod's allreduce sums as counters and which allows ``hvd.join``; with them a ``BucketVote``,
    which sends a fraction of the bytes. Every rank saves ``compression.state_dict()``. Use an inner
    optimizer without momentum.

    Args:
        named_parameters: all of the optimizer's, as ``model.named_parameters()``.
        seed: of the random bits for zeros and ties, equal on all ranks.
        process_set: the optimizer's.
        skip: as in ``mpisign.DistributedOptimizer``; only with ``named_parameters``.
        changed_votes: "raise" if votes are written to between ``synchronize()`` and ``step()``, as
            ``clip_grad_norm_`` does, or "allow".
        warmup_steps: as in ``mpisign.DistributedOptimizer``.
        settings: the compressor's, such as ``ties="zero"``.

    Raises:
        TypeError, ValueError: for invalid arguments.

    Example:
        >>> hvd.init()
        >>> model = torch.nn.Linear(3, 1, bias=False)
        >>> sgd = torch.optim.SGD(model.parameters(), lr=0.5)
        >>> vote = Compression.sign(model.named_parameters(), ties="zero")
        >>> optimizer = hvd.DistributedOptimizer(sgd, model.named_parameters(), compression=vote)
        >>> model(torch.tensor([[5.0, -3.0, 0.1]])).sum().backward()
        >>> optimizer.step()
        >>> model.weight.grad
        tensor([[ 1., -1.,  1.]])
    """

    none = hvd.Compression.none
    fp16 = hvd.Compression.fp16
    sign = _DefaultVote(COMPRESSORS["sign"])
    signum = _DefaultVote(COMPRESSORS["signum"])
    lion = _DefaultVote(COMPRESSORS["lion"])
    lion_avg = _DefaultVote(COMPRESSORS["lion_avg"])
    muon = _DefaultVote(COMPRESSORS["muon"])
    muon_avg = _DefaultVote(COMPRESSORS["muon_avg"])
    ef_sign = _DefaultVote(COMPRESSORS["ef_sign"])
    onebit = _DefaultVote(COMPRESSORS["onebit"])
    sparsign = _DefaultVote(COMPRESSORS["sparsign"])
    ef_sparsign = _DefaultVote(COMPRESSORS["ef_sparsign"])
    noisy_sign = _DefaultVote(COMPRESSORS["noisy_sign"])
    stochastic_sign = _DefaultVote(COMPRESSORS["stochastic_sign"])
    terngrad = _DefaultVote(COMPRESSORS["terngrad"])
    qsgd = _DefaultVote(COMPRESSORS["qsgd"])
    robust = _DefaultVote(COMPRESSORS["robust"])
    detox = _DefaultVote(COMPRESSORS["detox"])
    accordion = _DefaultVote(COMPRESSORS["accordion"])
