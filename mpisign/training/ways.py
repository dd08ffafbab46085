"""The ways to train that are compared: a transport each, and what travels over it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import mpisign
from mpisign.training.settings import Settings

if TYPE_CHECKING:
    import torch

Wrap = Callable[["torch.optim.Optimizer", "torch.nn.Module", Settings], "torch.optim.Optimizer"]


@dataclass(frozen=True)
class Way:
    """One way: ``wrap`` makes a plain torch optimizer act on what all ranks say."""

    name: str
    label: str
    via: str
    votes: bool
    wrap: Wrap

    def label_of(self, settings: Settings) -> str:
        """``label``, or the compressor's name and the transport's where it is not signum."""
        if not self.votes or settings.compression == "signum":
            return self.label
        how = " as counters" if self.name.endswith("counters") else ""
        return f"{settings.compression}{how}, {self.label.rpartition(', ')[2]}"


def _fp32(comm: str) -> Wrap:
    def wrap(
        optimizer: torch.optim.Optimizer, model: torch.nn.Module, settings: Settings
    ) -> torch.optim.Optimizer:
        return mpisign.DistributedOptimizer(
            optimizer, model.named_parameters(), comm=comm, compression="none"
        )

    return wrap


def _vote(comm: str) -> Wrap:
    def wrap(
        optimizer: torch.optim.Optimizer, model: torch.nn.Module, settings: Settings
    ) -> torch.optim.Optimizer:
        return mpisign.DistributedOptimizer(
            optimizer,
            model.named_parameters(),
            comm=comm,
            compression=settings.compressor(),
            algorithm=settings.algorithm,
            seed=settings.seed,
        )

    return wrap


def _horovod_fp32(
    optimizer: torch.optim.Optimizer, model: torch.nn.Module, settings: Settings
) -> torch.optim.Optimizer:
    import horovod.torch as hvd

    from mpisign.horovod import Booked

    return hvd.DistributedOptimizer(
        optimizer, model.named_parameters(), compression=Booked(hvd.Compression.none)
    )


def _horovod_counters(
    optimizer: torch.optim.Optimizer, model: torch.nn.Module, settings: Settings
) -> torch.optim.Optimizer:
    import horovod.torch as hvd

    from mpisign.horovod import CounterVote

    vote = CounterVote(settings.compressor(), seed=settings.seed)
    return hvd.DistributedOptimizer(optimizer, model.named_parameters(), compression=vote)


def _horovod_planes(
    optimizer: torch.optim.Optimizer, model: torch.nn.Module, settings: Settings
) -> torch.optim.Optimizer:
    import horovod.torch as hvd

    from mpisign.horovod import BucketVote

    vote = BucketVote(settings.compressor(), model.named_parameters(), seed=settings.seed)
    return hvd.DistributedOptimizer(optimizer, model.named_parameters(), compression=vote)


#: In the order they run: Horovod's background thread, once started, costs the others time.
WAYS = {
    way.name: way
    for way in (
        Way("mpi-fp32", "fp32 average, MPI", "mpi", False, _fp32("mpi")),
        Way("mpi-vote", "majority vote, MPI", "mpi", True, _vote("mpi")),
        Way("torch-fp32", "fp32 average, torch", "torch", False, _fp32("torch")),
        Way("torch-vote", "majority vote, torch", "torch", True, _vote("torch")),
        Way("horovod-fp32", "fp32 average, Horovod", "horovod", False, _horovod_fp32),
        Way("horovod-counters", "counter vote, Horovod", "horovod", True, _horovod_counters),
        Way("horovod-planes", "plane vote, Horovod", "horovod", True, _horovod_planes),
    )
}
