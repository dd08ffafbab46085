"""Training over plain MPI: any torch optimizer, stepping on votes instead of gradients."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch

from mpisign import policies
from mpisign.compressors import Compressor, resolve
from mpisign.gradient_vote import KEY, GradientVote

_FUNCTION = "DistributedOptimizer"


def DistributedOptimizer(
    optimizer: torch.optim.Optimizer,
    named_parameters: Iterable[tuple[str, torch.Tensor]] | None = None,
    *,
    comm: Any = None,
    compression: str | Compressor = "signum",
    algorithm: policies.Algorithm = "auto",
    seed: int = 0,
) -> torch.optim.Optimizer:
    """``optimizer`` itself, which from now on steps on the majority vote of all ranks.

    Before each ``step()`` every gradient becomes the vote of its compressor's signs over ``comm``
    (whatever ``mpisign.Communicator`` takes, default what the launcher started): +1, -1, or 0 where
    ``ties="zero"``. All gradients travel as one ballot. Learning rate and weight decay are the
    optimizer's: torch's SGD then does x -= lr (V + wd x).

    ``named_parameters``: names for messages and for the check that all ranks hold the same model,
    default: positions. ``compression``: "sign", "signum", a Compressor, or "none": the plain fp32
    average by the wire's allreduce, the baseline. A parameter without a gradient on some ranks
    counts as zeros there (with signum: as its momentum stands); one without a gradient on any rank
    is left alone. The compressor's state is part of ``optimizer.state_dict()``. Parameters must
    start equal on all ranks: the first step checks that, and every step the optimizer's options.

    A copy or pickle of the optimizer has lost the hook: wrap it again. torch.amp.GradScaler does
    not go with votes, which need no scale: it skips steps on single ranks.

    Raises TypeError, ValueError for arguments that do not fit; ``step()`` raises what
    ``majority_vote`` raises, on every rank, before any parameter changes.
    """
    from mpisign.communicator import channel_of

    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"{_FUNCTION}: optimizer must be a torch.optim.Optimizer, "
            f"got {type(optimizer).__name__}"
        )
    if getattr(optimizer, KEY, None) is not None:
        raise ValueError(f"{_FUNCTION}: the optimizer is a DistributedOptimizer already")
    compressor = None if compression == "none" else resolve(_FUNCTION, compression)
    names = _names(optimizer, named_parameters)
    if compressor is not None and any(g.get("momentum") for g in optimizer.param_groups):
        warnings.warn(
            f"{_FUNCTION}: the optimizer has a momentum of its own, which sums votes up to steps "
            "many times the learning rate: take momentum=0, signum has its own",
            stacklevel=2,
        )
    policies.code(_FUNCTION, "algorithm", algorithm, policies.ALGORITHMS)
    if not isinstance(seed, int) or not 0 <= seed < 1 << 64:
        raise ValueError(f"{_FUNCTION}: seed must be in [0, 2**64), got {seed!r}")
    vote = GradientVote(channel_of(_FUNCTION, comm), compressor, algorithm, seed, optimizer, names)
    setattr(optimizer, KEY, vote)
    optimizer.register_step_pre_hook(vote.before_step)
    optimizer.register_step_post_hook(vote.after_step)
    optimizer.register_state_dict_post_hook(vote.save)
    optimizer.register_load_state_dict_pre_hook(vote.load)
    return optimizer


def _names(
    optimizer: torch.optim.Optimizer,
    named_parameters: Iterable[tuple[str, torch.Tensor]] | None,
) -> dict[torch.Tensor, str]:
    """Names of the optimizer's parameters, in its order."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if named_parameters is None:
        return {p: str(i) for i, p in enumerate(parameters)}
    given = {p: name for name, p in named_parameters}
    missing = sum(p not in given for p in parameters)
    if missing:
        raise ValueError(
            f"{_FUNCTION}: named_parameters must name every parameter of the optimizer, as "
            f"model.named_parameters() does, got no name for {missing} of {len(parameters)}"
        )
    if len(set(given.values())) < len(given):
        raise ValueError(f"{_FUNCTION}: named_parameters must have distinct names")
    return {p: given[p] for p in parameters}
