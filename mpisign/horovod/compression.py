"""``Compression``: what a training script hands to ``hvd.DistributedOptimizer``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

import horovod.torch as hvd
import torch

from mpisign.compressors import COMPRESSORS, Compressor, Detox
from mpisign.exchange.skip import Rule
from mpisign.horovod.bucket_vote import BucketVote
from mpisign.horovod.counter_vote import CounterVote
from mpisign.horovod.vote import VoteCompression

Named = Iterable[tuple[str, torch.Tensor]]
_SUMS = ("vote", "gathered_vote")  # what counters can tell: how many voted for what


def _counted(compressor: Compressor) -> bool:
    return compressor.aggregate in _SUMS and not isinstance(compressor, Detox)


class NamedOnly(VoteCompression):
    """A compression that lacks the named parameters that it needs.

    ``mpisign.horovod.DistributedOptimizer`` takes it; under ``hvd.DistributedOptimizer`` it raises
    TypeError on every rank, before anything is sent.
    """

    def compress(self, tensor: torch.Tensor) -> NoReturn:
        name = next(n for n, kind in COMPRESSORS.items() if type(self.compressor) is kind)
        raise TypeError(
            f"Compression.{name}: what it sends is no vote that Horovod's allreduce could count, "
            "or is counted in groups. "
            f"Give it the parameters, Compression.{name}(model.named_parameters()), or use "
            "mpisign.horovod.DistributedOptimizer"
        )

    def decompress(self, tensor: torch.Tensor, ctx: object) -> NoReturn:
        self._refuse_sparse()


def _build(
    compressor: Compressor,
    named_parameters: Named | None = None,
    *,
    skip: str | Rule | None = "auto",
    **options: Any,
) -> VoteCompression:
    if named_parameters is not None:
        return BucketVote(compressor, named_parameters, skip=skip, **options)
    if _counted(compressor):
        return CounterVote(compressor, **options)
    return NamedOnly(compressor, **options)


class _AsItComes(CounterVote):
    """A compression with the defaults that, called, makes one with settings."""

    def __init__(self, kind: type[Compressor]) -> None:
        super().__init__(kind())
        self._kind = kind
        self.__doc__ = kind.__doc__

    def compress(self, tensor: torch.Tensor) -> tuple[torch.Tensor, Any]:
        if not _counted(self.compressor):
            NamedOnly(self.compressor).compress(tensor)
        return super().compress(tensor)

    def __call__(
        self,
        named_parameters: Named | None = None,
        *,
        seed: int = 0,
        process_set: hvd.ProcessSet = hvd.global_process_set,
        skip: str | Rule | None = "auto",
        **settings: Any,
    ) -> VoteCompression:
        """With settings, those of the compressor's class.

        Without ``named_parameters`` votes travel as counters through Horovod's allreduce, which
        bears ``hvd.join``; with them (all of the optimizer's) in buckets, a fraction of the bytes.
        ``skip``: see ``mpisign.DistributedOptimizer``; only with named parameters. Raises
        ValueError, TypeError for arguments that do not fit.
        """
        return _build(
            self._kind(**settings),
            named_parameters,
            seed=seed,
            process_set=process_set,
            skip=skip,
        )


class Compression:
    """``compression=Compression.sign``, or ``Compression.sign(model.named_parameters(), ...)``.

    All of ``mpisign.Compression`` and Horovod's own two. Save the state of what has one with
    ``state_dict()`` on every rank, and use an inner optimizer without momentum.
    """

    none = hvd.Compression.none
    fp16 = hvd.Compression.fp16
    sign = _AsItComes(COMPRESSORS["sign"])
    signum = _AsItComes(COMPRESSORS["signum"])
    lion = _AsItComes(COMPRESSORS["lion"])
    lion_avg = _AsItComes(COMPRESSORS["lion_avg"])
    ef_sign = _AsItComes(COMPRESSORS["ef_sign"])
    onebit = _AsItComes(COMPRESSORS["onebit"])
    sparsign = _AsItComes(COMPRESSORS["sparsign"])
    ef_sparsign = _AsItComes(COMPRESSORS["ef_sparsign"])
    noisy_sign = _AsItComes(COMPRESSORS["noisy_sign"])
    stochastic_sign = _AsItComes(COMPRESSORS["stochastic_sign"])
    terngrad = _AsItComes(COMPRESSORS["terngrad"])
    qsgd = _AsItComes(COMPRESSORS["qsgd"])
    robust = _AsItComes(COMPRESSORS["robust"])
    detox = _AsItComes(COMPRESSORS["detox"])
