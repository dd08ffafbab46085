"""``Compression``: what a training script hands to ``hvd.DistributedOptimizer``."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import horovod.torch as hvd
import torch

from mpisign import policies
from mpisign.compressors import Compressor, Sign, Signum
from mpisign.horovod.bucket_vote import BucketVote
from mpisign.horovod.counter_vote import CounterVote
from mpisign.horovod.vote import VoteCompression

Named = Iterable[tuple[str, torch.Tensor]]


def sign(
    named_parameters: Named | None = None,
    *,
    zeros: policies.Zeros = policies.DEFAULT_ZEROS,
    nan: policies.Nan = policies.DEFAULT_NAN,
    ties: policies.Ties = policies.DEFAULT_TIES,
    seed: int = 0,
    process_set: hvd.ProcessSet = hvd.global_process_set,
) -> VoteCompression:
    """Majority vote on the signs of gradients.

    Without ``named_parameters`` votes travel as counters through Horovod's allreduce, which bears
    ``hvd.join``; with them (all of the optimizer's) as sign planes in one bucket, a fraction of the
    bytes. Policies: see ``mpisign.pack`` and ``mpisign.majority``. Raises ValueError, TypeError for
    arguments that do not fit.
    """
    compressor = Sign(zeros=zeros, nan=nan, ties=ties)
    return _build(compressor, named_parameters, seed, process_set)


def signum(
    named_parameters: Named | None = None,
    *,
    momentum: float = 0.9,
    zeros: policies.Zeros = policies.DEFAULT_ZEROS,
    nan: policies.Nan = policies.DEFAULT_NAN,
    ties: policies.Ties = policies.DEFAULT_TIES,
    seed: int = 0,
    process_set: hvd.ProcessSet = hvd.global_process_set,
) -> VoteCompression:
    """Majority vote on the signs of momenta, which stay on their ranks; else as ``sign``.

    Save them with ``state_dict()`` on every rank. Use an inner optimizer without momentum.
    """
    compressor = Signum(zeros=zeros, nan=nan, ties=ties, momentum=momentum)
    return _build(compressor, named_parameters, seed, process_set)


def _build(
    compressor: Compressor, named: Named | None, seed: int, process_set: hvd.ProcessSet
) -> VoteCompression:
    if named is None:
        return CounterVote(compressor, seed=seed, process_set=process_set)
    return BucketVote(compressor, named, seed=seed, process_set=process_set)


class _AsItComes(CounterVote):
    """A compression with the defaults that, called, makes one with settings."""

    def __init__(self, make: Callable[..., VoteCompression], compressor: Compressor) -> None:
        super().__init__(compressor)
        self._make = make
        self.__doc__ = make.__doc__

    def __call__(self, *args: object, **settings: object) -> VoteCompression:
        return self._make(*args, **settings)


class Compression:
    """``compression=Compression.sign``, or ``Compression.sign(model.named_parameters(), ...)``."""

    sign = _AsItComes(sign, Sign())
    signum = _AsItComes(signum, Signum())
