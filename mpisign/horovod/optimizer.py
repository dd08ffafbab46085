"""``mpisign.horovod.DistributedOptimizer``: Horovod's optimizer, stepping on votes."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import horovod.torch as hvd
import torch
from horovod.torch.optimizer import DistributedOptimizer as _horovods

from mpisign import launcher, policies
from mpisign.compressors import Accordion, Compressor, resolve
from mpisign.compressors.uncompressed import Uncompressed
from mpisign.exchange.buckets import BUCKET_SIZE
from mpisign.exchange.local_steps import check_optimizer
from mpisign.exchange.optimizer_options import check_plain, warn_of_optimizer
from mpisign.exchange.pending_step import ChangedVotes
from mpisign.exchange.skip import Rule
from mpisign.horovod.gradients import HorovodGradients
from mpisign.horovod.methods import METHODS
from mpisign.horovod.process_set_engine import elastic
from mpisign.horovod.vote import VoteCompression

_FUNCTION = "DistributedOptimizer"


def DistributedOptimizer(
    optimizer: torch.optim.Optimizer,
    named_parameters: Iterable[tuple[str, torch.Tensor]] | None = None,
    compression: Any = "signum",
    backward_passes_per_step: int = 1,
    op: Any = hvd.Average,
    gradient_predivide_factor: float = 1.0,
    num_groups: int = 0,
    groups: Any = None,
    sparse_as_dense: bool = False,
    process_set: hvd.ProcessSet = hvd.global_process_set,
    *,
    skip: str | Rule | None = "auto",
    algorithm: policies.Algorithm = "auto",
    seed: int | None = None,
    bucket_size: int | None = BUCKET_SIZE,
    changed_votes: ChangedVotes = "raise",
    warmup_steps: int = 0,
) -> torch.optim.Optimizer:
    """Horovod's ``DistributedOptimizer``, whose gradients are exchanged as votes.

    Behaves as Horovod's, except where said below. A bucket is sent as soon as ``backward()`` has
    computed all its gradients. A parameter without a gradient on any rank is left alone. With
    ``sparse_as_dense=False`` sparse gradients are averaged by Horovod's own allreduce. Collective
    on ``process_set``; one process steps on votes too.

    Args:
        optimizer: any torch optimizer; use one without momentum, with learning rates of sign
            descent, for compressors that vote.
        named_parameters: as Horovod's, ``model.named_parameters()``.
        compression: a name (see ``mpisign.Compression``), a Compressor, or one of
            ``mpisign.horovod.Compression``. Each gradient becomes the aggregate of all ranks'
            compressors, for those that vote +1, -1 or 0. With "none" or one of Horovod's
            compressions the result is Horovod's own optimizer.
        backward_passes_per_step, sparse_as_dense, process_set: as Horovod's.
        op: hvd.Average or hvd.Sum, which differ only for compressors that do not vote.
        gradient_predivide_factor: checked as Horovod's, without effect.
        num_groups, groups: checked as Horovod's, without effect: buckets replace them.
        skip, algorithm: as in ``mpisign.DistributedOptimizer``.
        seed: of the random bits, equal on all ranks; default: that of ``compression``, or 0.
        bucket_size: coordinates in a bucket.
        changed_votes: "raise" if votes are written to between ``synchronize()`` and ``step()``, as
            ``clip_grad_norm_`` does, or "allow".
        warmup_steps: as in ``mpisign.DistributedOptimizer``. Under hvd.Sum the averages are sums.

    Returns:
        A new optimizer of a subclass of ``optimizer``'s class, as Horovod's.

    Raises:
        TypeError, ValueError: for invalid arguments.
        NaNError, DisagreementError, CollectiveError, CollectiveTimeout, WireError: from ``step()``
            and ``synchronize()``, on every rank, before any parameter changes.
        HorovodInternalError: from the same in elastic jobs, if the connection broke.

    Example:
        >>> hvd.init()
        >>> model = torch.nn.Linear(3, 1, bias=False)
        >>> sgd = torch.optim.SGD(model.parameters(), lr=0.5)
        >>> optimizer = DistributedOptimizer(sgd, model.named_parameters(), compression="sign")
        >>> model(torch.tensor([[5.0, -3.0, 0.1]])).sum().backward()
        >>> optimizer.step()
        >>> model.weight.grad
        tensor([[ 1., -1.,  1.]])
    """
    compressor = _compressor(compression)
    if compressor is None:
        return _horovods(  # type: ignore[no-any-return]
            optimizer,
            named_parameters,
            compression if _is_horovods(compression) else hvd.Compression.none,
            backward_passes_per_step,
            op,
            gradient_predivide_factor,
            num_groups,
            groups,
            sparse_as_dense,
            process_set,
        )
    _check(optimizer, compressor, backward_passes_per_step, op, gradient_predivide_factor)
    if num_groups and launcher.is_first():
        warnings.warn(
            f"{_FUNCTION}: num_groups is Horovod's old name of groups",
            DeprecationWarning,
            stacklevel=2,
        )
    if seed is None:
        seed = compression.seed if isinstance(compression, VoteCompression) else 0
    kind = type(optimizer)
    made: Any = type(kind.__name__, (kind,), dict(METHODS))(
        optimizer.param_groups,
        named_parameters,
        hvd.Compression.none,
        backward_passes_per_step,
        op,
        gradient_predivide_factor,
        groups if groups is not None else num_groups or None,
        sparse_as_dense,
        process_set,
    )
    if process_set.included():
        options = {
            "skip": skip,
            "algorithm": algorithm,
            "seed": seed,
            "bucket_size": bucket_size,
            "changed_votes": changed_votes,
            "warmup_steps": warmup_steps,
        }
        made._mpisign = HorovodGradients(made, compressor, **options)
        made._mpisign.take_up(optimizer)
    return made  # type: ignore[no-any-return]


def _compressor(compression: Any) -> Compressor | None:
    """The Compressor; None for Horovod's own compressions."""
    if isinstance(compression, VoteCompression):
        return compression.compressor
    if _is_horovods(compression):
        return None
    compressor = resolve(_FUNCTION, compression)
    return None if isinstance(compressor, Uncompressed) else compressor


def _is_horovods(compression: Any) -> bool:
    """Whether it has Horovod's interface. Compressors have methods of the same names."""
    kind = compression if isinstance(compression, type) else type(compression)
    if issubclass(kind, Compressor):
        return False
    return all(callable(getattr(compression, name, None)) for name in ("compress", "decompress"))


def _check(optimizer: Any, compressor: Compressor, passes: int, op: Any, predivide: float) -> None:
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"{_FUNCTION}: optimizer must be a torch.optim.Optimizer, "
            f"got {type(optimizer).__name__}"
        )
    if hasattr(optimizer, "_mpisign") or hasattr(optimizer, "skip_synchronize"):
        raise ValueError(
            f"{_FUNCTION}: the optimizer is a DistributedOptimizer already: to wrap it again, "
            "optimizer = mpisign.unwrap(optimizer) first"
        )
    if passes <= 0:
        raise ValueError("backward_passes_per_step must be > 0")
    if op not in (hvd.Average, hvd.Sum):
        raise ValueError(
            f"{_FUNCTION}: op must be hvd.Average or hvd.Sum with compression={compressor!r} "
            "(hvd.Adasum adds up differences of parameters: take hvd.Compression.none or fp16)"
        )
    if predivide != 1.0 and op != hvd.Average:
        raise ValueError("gradient_predivide_factor not supported with op != Average")
    if compressor.local_steps > 1 and elastic():
        raise ValueError(
            f"{_FUNCTION}: local steps cannot be combined with elastic training: a rank that joins "
            "does not know how many of them the others have taken; use local_steps=1"
        )
    if isinstance(compressor, Accordion) and elastic():
        raise ValueError(
            f"{_FUNCTION}: Accordion cannot be combined with elastic training: a rank that joins "
            "does not know the norms by which the others decide; take its high compression alone"
        )
    check_plain(_FUNCTION, optimizer)
    check_optimizer(_FUNCTION, optimizer, compressor)
    warn_of_optimizer(_FUNCTION, compressor, optimizer, stacklevel=3)
