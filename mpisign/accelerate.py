"""Hugging Face Accelerate: ``mpisign.accelerate.register_comm_hook(accelerator, model)``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from mpisign.compressors import Compressor
from mpisign.ddp import MajorityVoteState, majority_vote_hook
from mpisign.exchange import rank_files

try:
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer
except ImportError as error:
    raise ImportError('mpisign.accelerate needs it: pip install "accelerate>=1.0"') from error

__all__ = ["register_comm_hook"]

_FUNCTION = "register_comm_hook"


def register_comm_hook(
    accelerator: Accelerator,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    compression: str | Compressor = "signum",
    **settings: Any,
) -> MajorityVoteState:
    """Has the ranks vote on the gradients of a model that ``accelerator.prepare`` returned.

    ``DistributedDataParallelKwargs(comm_hook=...)`` takes four names of torch's hooks and no other.
    ``accelerator.save_state`` then has every rank save its own momentum or residual too, in
    ``votes-rank0.pt`` and so on in the same folder; ``accelerator.load_state`` reads them.

    Args:
        accelerator: whose ``prepare`` made the model.
        model: prepared, before its first backward pass.
        optimizer: prepared or not, if one has all the model's parameters: see
            ``mpisign.ddp.MajorityVoteState``.
        compression: a name (see ``mpisign.Compression``) or a Compressor.
        settings: other arguments of ``mpisign.ddp.MajorityVoteState``.

    Returns:
        The state of the hook, which ``save_state`` and ``load_state`` save and load.

    Raises:
        TypeError: if the model is not in a DistributedDataParallel, as when one process trains.
        ValueError: for invalid settings, a GradScaler's among them (``GradScalerKwargs``).

    Example:
        >>> accelerator = Accelerator(cpu=True)  # one process, without a launcher
        >>> register_comm_hook(accelerator, accelerator.prepare(torch.nn.Linear(3, 1)))
        Traceback (most recent call last):
        TypeError: register_comm_hook: model must be ... got Linear ...: start several ...
    """
    ddp = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    if not isinstance(ddp, DistributedDataParallel):
        raise TypeError(
            f"{_FUNCTION}: model must be the DistributedDataParallel that accelerator.prepare() "
            f"returns, got {type(ddp).__name__} under {accelerator.distributed_type}: start "
            "several ranks, as by accelerate launch --multi_gpu, accelerate launch --cpu "
            "--num_processes 2 or torchrun; for FSDP see mpisign.fsdp"
        )
    net = ddp.module
    settings.setdefault("scaler", accelerator.scaler)  # of mixed_precision="fp16"
    state = MajorityVoteState(
        ddp.process_group,
        compression,
        named_parameters=net.named_parameters(),
        optimizer=unwrap_optimizer(optimizer),
        **settings,
    )
    ddp.register_comm_hook(state, majority_vote_hook)
    rank, size = accelerator.process_index, accelerator.num_processes

    def files() -> str | None:
        """What this model's files are named by; None after ``accelerator.free_memory()``."""
        for i, known in enumerate(accelerator._models):  # the list as prepare() saw the models
            if any(known is x for x in (model, ddp, net)):
                return f"votes_{i}" if i else "votes"  # numbered as Accelerate numbers models
        return None

    def save(models: Any, weights: Any, folder: str) -> None:
        if of := files():
            rank_files.save(Path(folder), rank, rank_files.contents(state, size), of)

    def load(models: Any, folder: str) -> None:
        if of := files():
            own = partial(rank_files.load, Path(folder), rank, of)
            found = rank_files.read_by_all(own, partial(any_of, accelerator), "load_state")
            state.load_state_dict(found["votes"])

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)
    return state


def any_of(accelerator: Any, flag: bool) -> bool:
    """Whether it is set on any rank."""
    flags = accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), "sum")
    return bool(flags.item() > 0)


def unwrap_optimizer(optimizer: Any) -> torch.optim.Optimizer | None:
    """The torch optimizer within Accelerate's."""
    while isinstance(optimizer, AcceleratedOptimizer):
        optimizer = optimizer.optimizer
    return optimizer
