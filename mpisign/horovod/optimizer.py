"""``mpisign.horovod.DistributedOptimizer``: Horovod's optimizer, but for what it sends."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import horovod.torch as hvd
import torch
from horovod.torch.optimizer import DistributedOptimizer as _horovods

from mpisign import policies
from mpisign.compressors import Compressor, resolve
from mpisign.compressors.uncompressed import Uncompressed
from mpisign.exchange.buckets import BUCKET_SIZE
from mpisign.exchange.local_steps import check_optimizer
from mpisign.exchange.optimizer_options import warn_of_momentum
from mpisign.exchange.skip import Rule
from mpisign.horovod.gradients import HorovodGradients
from mpisign.horovod.methods import METHODS
from mpisign.horovod.vote import VoteCompression
from mpisign.horovod.wire import elastic

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
) -> torch.optim.Optimizer:
    """``hvd.DistributedOptimizer``, whose gradients travel in bits while others are computed.

    Arguments and behaviour are Horovod's, except:

    ``compression``: a name ("signum", see ``mpisign.Compression``), a Compressor, or one of
    ``mpisign.horovod.Compression``. Each gradient becomes the aggregate of all ranks' compressors,
    for those that vote +1, -1 or 0: use learning rates of sign descent. With "none" or one of
    Horovod's compressions this is Horovod's own optimizer. ``skip``, ``algorithm``, ``seed``: as
    in ``mpisign.DistributedOptimizer``. ``bucket_size``: coordinates that travel together; a bucket
    leaves as soon as ``backward()`` has reached all its parameters. Buckets take the place of
    ``groups``, whose arguments are checked and change nothing else.

    ``op``: Average or Sum, which differ for compressors that do not vote. A parameter that no rank
    used in a step is left alone. With ``sparse_as_dense=False`` sparse gradients travel as Horovod
    sends them, averaged. Collective on ``process_set``, and for one process the same.

    Raises TypeError, ValueError for arguments that do not fit; ``step()`` and ``synchronize()``
    raise what ``majority_vote`` raises, on every rank, before any parameter changes; in elastic
    jobs HorovodInternalError for a broken wire.
    """
    compressor = _compressor(compression)
    if compressor is None:
        return _horovods(  # type: ignore[no-any-return]
            optimizer,
            named_parameters,
            compression if hasattr(compression, "compress") else hvd.Compression.none,
            backward_passes_per_step,
            op,
            gradient_predivide_factor,
            num_groups,
            groups,
            sparse_as_dense,
            process_set,
        )
    _check(optimizer, compressor, backward_passes_per_step, op, gradient_predivide_factor)
    if num_groups:
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
    made._mpisign = HorovodGradients(
        made,
        compressor,
        skip=skip,
        algorithm=algorithm,
        seed=seed,
        bucket_size=bucket_size,
    )
    return made  # type: ignore[no-any-return]


def _compressor(compression: Any) -> Compressor | None:
    """None for what is Horovod's own."""
    if isinstance(compression, VoteCompression):
        return compression.compressor
    if all(callable(getattr(compression, name, None)) for name in ("compress", "decompress")):
        return None
    compressor = resolve(_FUNCTION, compression)
    return None if isinstance(compressor, Uncompressed) else compressor


def _check(optimizer: Any, compressor: Compressor, passes: int, op: Any, predivide: float) -> None:
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"{_FUNCTION}: optimizer must be a torch.optim.Optimizer, "
            f"got {type(optimizer).__name__}"
        )
    if hasattr(optimizer, "_mpisign") or hasattr(optimizer, "skip_synchronize"):
        raise ValueError(f"{_FUNCTION}: the optimizer is a DistributedOptimizer already")
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
            f"{_FUNCTION}: local steps and elastic training do not go together: a rank that comes "
            "does not know how far a round has got; take local_steps=1"
        )
    if compressor.local_steps > 1:
        check_optimizer(_FUNCTION, optimizer)
    warn_of_momentum(_FUNCTION, compressor, optimizer, stacklevel=3)
