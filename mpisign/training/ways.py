"""The ways to train that are compared: a transport each, and what travels over it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import mpisign
from mpisign.training.settings import Settings

if TYPE_CHECKING:
    import torch

    from mpisign.compressors import Compressor

Wrap = Callable[
    ["torch.optim.Optimizer", "torch.nn.Module", Settings, "Compressor | None"],
    "torch.optim.Optimizer",
]


@dataclass(frozen=True)
class Way:
    """One way: ``wrap`` makes a plain torch optimizer act on what all ranks say.

    ``wrap(optimizer, model, settings, compressor)``; no compressor where gradients are averaged.
    """

    name: str
    label: str
    via: str
    votes: bool
    wrap: Wrap

    @property
    def eager(self) -> bool:
        """Whether gradients are sent while ``backward()`` still computes others."""
        return self.via == "horovod"

    def label_of(self, settings: Settings) -> str:
        """``label``, or the compressor's or the rule's name and the transport's."""
        sent = settings.rule or settings.compression
        if not self.votes or (sent == "signum" and settings.detox is None):
            return self.label
        how = " as counters" if self.name.endswith("counters") else ""
        detox = "" if settings.detox is None else "DETOX, "
        return f"{detox}{sent}{how}, {self.label.rpartition(', ')[2]}"

    def lacks(self, settings: Settings) -> str:
        """The option of ``settings`` that this way cannot follow, "" if there is none."""
        if not self.votes or self.via != "horovod":
            return ""
        if settings.byzantine_f:
            return "--byzantine-f"
        if self.name != "horovod-counters":
            return ""
        return "--detox" if settings.detox else "--rule" if settings.rule else ""


def _fp32(comm: str) -> Wrap:
    def wrap(
        optimizer: torch.optim.Optimizer,
        model: torch.nn.Module,
        settings: Settings,
        compressor: Compressor | None,
    ) -> torch.optim.Optimizer:
        return mpisign.DistributedOptimizer(
            optimizer, model.named_parameters(), comm=comm, compression="none"
        )

    return wrap


def _vote(comm: str) -> Wrap:
    def wrap(
        optimizer: torch.optim.Optimizer,
        model: torch.nn.Module,
        settings: Settings,
        compressor: Compressor | None,
    ) -> torch.optim.Optimizer:
        assert compressor is not None
        return mpisign.DistributedOptimizer(
            optimizer,
            model.named_parameters(),
            comm=comm,
            compression=compressor,
            algorithm=settings.algorithm,
            byzantine_f=settings.byzantine_f,
            seed=settings.seed,
        )

    return wrap


def _horovod_fp32(
    optimizer: torch.optim.Optimizer,
    model: torch.nn.Module,
    settings: Settings,
    compressor: Compressor | None,
) -> torch.optim.Optimizer:
    import horovod.torch as hvd

    from mpisign.horovod import Booked

    return hvd.DistributedOptimizer(
        optimizer, model.named_parameters(), compression=Booked(hvd.Compression.none)
    )


def _horovod_counters(
    optimizer: torch.optim.Optimizer,
    model: torch.nn.Module,
    settings: Settings,
    compressor: Compressor | None,
) -> torch.optim.Optimizer:
    import horovod.torch as hvd

    from mpisign.horovod import CounterVote

    assert compressor is not None
    vote = CounterVote(compressor, seed=settings.seed)
    return hvd.DistributedOptimizer(optimizer, model.named_parameters(), compression=vote)


def _horovod_planes(
    optimizer: torch.optim.Optimizer,
    model: torch.nn.Module,
    settings: Settings,
    compressor: Compressor | None,
) -> torch.optim.Optimizer:
    import horovod.torch as hvd

    from mpisign.horovod import BucketVote

    assert compressor is not None
    vote = BucketVote(compressor, model.named_parameters(), seed=settings.seed)
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
