"""Training over plain MPI: any torch optimizer, stepping on votes instead of gradients."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from mpisign import policies
from mpisign.compressors import Compressor, resolve
from mpisign.exchange.buckets import BUCKET_SIZE
from mpisign.exchange.gradient_exchange import PLANES_ONLY, GradientExchange
from mpisign.exchange.local_steps import check_optimizer
from mpisign.exchange.optimizer_options import warn_of_momentum
from mpisign.exchange.parameter_slot import ParameterSlot
from mpisign.exchange.skip import Rule
from mpisign.exchange.step_hooks import KEY, StepHooks

_FUNCTION = "DistributedOptimizer"


def DistributedOptimizer(
    optimizer: torch.optim.Optimizer,
    named_parameters: Iterable[tuple[str, torch.Tensor]] | None = None,
    *,
    comm: Any = None,
    compression: str | Compressor = "signum",
    algorithm: policies.Algorithm = "auto",
    byzantine_f: int = 0,
    seed: int = 0,
    skip: str | Rule | None = "auto",
    overlap: bool = False,
    bucket_size: int | None = None,
) -> torch.optim.Optimizer:
    """``optimizer`` itself, which from now on steps on what all ranks' compressors agree on.

    Before each ``step()`` every gradient becomes the aggregate of its compressor over ``comm``
    (whatever ``mpisign.Communicator`` takes, default what the launcher started); of those that
    vote: +1, -1, or 0 where ``ties="zero"``. Learning rate and weight decay are the optimizer's:
    torch's SGD then does x -= lr (V + wd x).

    ``named_parameters``: names for messages and for the check that all ranks hold the same model,
    default: positions. ``compression``: a name ("signum", see ``mpisign.Compression``), a
    Compressor, or "none": the plain fp32 average by the wire's allreduce, the baseline. ``skip``:
    which parameters travel otherwise: "auto" (embeddings, found by name, abstain where their
    gradient is 0; with compressors whose updates are of a gradient's size, vectors and small
    tensors travel in 16 bits), None, or a function of name and parameter that returns "16bit",
    "abstain" or None. A parameter without a gradient on some ranks counts as zeros there (with
    signum: as its momentum stands); one without a gradient on any rank is left alone. The
    compressor's state is part of ``optimizer.state_dict()``, every rank's its own. Parameters must
    start equal on all ranks: the first step checks that, and every step the optimizer's options.

    ``byzantine_f``: how many ranks may lie about tallies too, see ``mpisign.majority_vote``; for
    compressors that vote.

    ``overlap``: gradients travel while ``backward()`` computes others. Then there is one
    ``backward()`` a step, and nothing may touch gradients, or learning rates, between it and
    ``step()``. Each such optimizer has a communicator of its own, unless ``comm`` is a
    ``Communicator``, which no other optimizer with overlap may have then. What one rank finds wrong
    after all is on its way raises there alone.
    ``bucket_size``: coordinates that travel together, default 2 Mi; without overlap votes and
    averages travel as one.

    A copy or pickle of the optimizer has lost the hook: wrap it again. torch.amp.GradScaler does
    not go with votes, which need no scale: it skips steps on single ranks.

    Raises TypeError, ValueError for arguments that do not fit; ``step()`` raises what
    ``majority_vote`` raises, on every rank, before any parameter changes.
    """
    from mpisign.communicator import Communicator
    from mpisign.functions import engine_of

    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"{_FUNCTION}: optimizer must be a torch.optim.Optimizer, "
            f"got {type(optimizer).__name__}"
        )
    if getattr(optimizer, KEY, None) is not None:
        raise ValueError(f"{_FUNCTION}: the optimizer is a DistributedOptimizer already")
    compressor = resolve(_FUNCTION, compression)
    names = _names(optimizer, named_parameters)
    warn_of_momentum(_FUNCTION, compressor, optimizer, stacklevel=2)
    if compressor.local_steps > 1:
        check_optimizer(_FUNCTION, optimizer, overlap)
    members = [ParameterSlot(name, p) for p, name in names.items()]
    whole = not overlap and compressor.aggregate in PLANES_ONLY
    if bucket_size is None and not whole:
        bucket_size = BUCKET_SIZE
    if overlap and not isinstance(comm, Communicator):
        # Of two optimizers the first bucket to fill up need not be the same on all ranks.
        engine = Communicator(comm).engine
    else:
        engine = engine_of(_FUNCTION, comm)
    exchange = GradientExchange(
        "step",
        lambda: engine,
        members[::-1] if overlap else members,
        compressor,
        skip=skip,
        algorithm=algorithm,
        byzantine_f=byzantine_f,
        seed=seed,
        bucket_size=bucket_size,
        optimizer=optimizer,
        state=True,
        number=engine.exchanges if overlap else 0,
    )
    engine.exchanges += overlap
    setattr(optimizer, KEY, StepHooks(optimizer, exchange, overlap))
    return optimizer


def _names(
    optimizer: torch.optim.Optimizer,
    named_parameters: Iterable[tuple[str, torch.Tensor]] | None,
) -> dict[torch.Tensor, str]:
    """Names of the optimizer's parameters, in its order."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if named_parameters is None:
        return {p: str(i) for i, p in enumerate(parameters)}
    pairs = list(named_parameters)
    if not all(isinstance(x, tuple) and len(x) == 2 and isinstance(x[0], str) for x in pairs):
        raise TypeError(
            f"{_FUNCTION}: named_parameters must hold (name, parameter) pairs as "
            f"model.named_parameters() does, got {type(pairs[0]).__name__}"
        )
    given = {p: name for name, p in pairs}
    missing = sum(p not in given for p in parameters)
    if missing:
        raise ValueError(
            f"{_FUNCTION}: named_parameters must name every parameter of the optimizer, as "
            f"model.named_parameters() does, got no name for {missing} of {len(parameters)}"
        )
    if len(set(given.values())) < len(given):
        raise ValueError(f"{_FUNCTION}: named_parameters must have distinct names")
    return {p: given[p] for p in parameters}
