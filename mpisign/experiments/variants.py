"""What ``mpisign train`` compares: a transport each, and what is sent over it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from mpisign.compressors import Compressor
    from mpisign.experiments.cell import Cell
    from mpisign.experiments.settings import Settings
    from mpisign.experiments.tasks.base import Named

Wrap = Callable[["Cell", "Named", "Compressor"], "torch.optim.Optimizer"]


@dataclass(frozen=True)
class Variant:
    """One row of the comparison. ``wrap`` makes the optimizer of a cell act on all ranks."""

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
        """The option of ``settings`` that this variant does not support, "" if there is none."""
        if not self.votes or self.via != "horovod":
            return ""
        if settings.byzantine_f:
            return "--byzantine-f"
        if self.name != "horovod-counters":
            return ""
        return "--detox" if settings.detox else "--rule" if settings.rule else ""


def _mpisign(comm: str) -> Wrap:
    def wrap(cell: Cell, named: Named, compressor: Compressor) -> torch.optim.Optimizer:
        from mpisign.experiments.loop import distributed

        return distributed(cell, named, comm, compressor)

    return wrap


def _horovod(sends: Callable[[Cell, Named, Compressor], Any]) -> Wrap:
    """``hvd.DistributedOptimizer`` with the ``compression=`` that ``sends`` returns."""

    def wrap(cell: Cell, named: Named, compressor: Compressor) -> torch.optim.Optimizer:
        import horovod.torch as hvd

        from mpisign.experiments.loop import plain_optimizer

        return hvd.DistributedOptimizer(
            plain_optimizer(cell, named), named, compression=sends(cell, named, compressor)
        )

    return wrap


def _fp32(cell: Cell, named: Named, compressor: Compressor) -> Any:
    import horovod.torch as hvd

    from mpisign.horovod import CountBytes

    return CountBytes(hvd.Compression.none)


def _counters(cell: Cell, named: Named, compressor: Compressor) -> Any:
    from mpisign.horovod import CounterVote

    return CounterVote(compressor, seed=cell.seed)


def _planes(cell: Cell, named: Named, compressor: Compressor) -> Any:
    from mpisign.horovod import BucketVote

    return BucketVote(compressor, named, seed=cell.seed)


#: In the order in which they run: once started, Horovod's thread costs the others time.
VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("mpi-fp32", "fp32 average, MPI", "mpi", False, _mpisign("mpi")),
        Variant("mpi-vote", "majority vote, MPI", "mpi", True, _mpisign("mpi")),
        Variant("torch-fp32", "fp32 average, torch", "torch", False, _mpisign("torch")),
        Variant("torch-vote", "majority vote, torch", "torch", True, _mpisign("torch")),
        Variant("horovod-fp32", "fp32 average, Horovod", "horovod", False, _horovod(_fp32)),
        Variant("horovod-counters", "counter vote, Horovod", "horovod", True, _horovod(_counters)),
        Variant("horovod-planes", "plane vote, Horovod", "horovod", True, _horovod(_planes)),
    )
}
