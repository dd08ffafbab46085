"""What ``mpisign train`` compares: a transport each, and what is sent over it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from mpisign.compressors import Compressor
    from mpisign.experiments.cell import Cell
    from mpisign.experiments.settings import Settings
    from mpisign.experiments.tasks.base import Named


@dataclass(frozen=True)
class Variant:
    """One row of the comparison."""

    name: str
    label: str

    @property
    def via(self) -> str:
        """The transport: "mpi", "torch" or "horovod"."""
        return self.name.partition("-")[0]

    @property
    def votes(self) -> bool:
        """Whether ranks vote instead of averaging."""
        return not self.name.endswith("fp32")

    def wrap(self, cell: Cell, named: Named, compressor: Compressor) -> torch.optim.Optimizer:
        """The optimizer of ``cell``, which acts on all ranks."""
        from mpisign.experiments import loop

        if self.via != "horovod":
            return loop.distributed(cell, named, self.via, compressor)
        import horovod.torch as hvd

        from mpisign.horovod import BucketVote, CountBytes, CounterVote

        sends: Any = CountBytes(hvd.Compression.none)
        if self.name == "horovod-counters":
            sends = CounterVote(compressor, seed=cell.seed)
        elif self.votes:
            sends = BucketVote(compressor, named, seed=cell.seed)
        plain = loop.plain_optimizer(cell, named)
        return hvd.DistributedOptimizer(plain, named, compression=sends)  # type: ignore[no-any-return]

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


#: In the order in which they run: once started, Horovod's thread costs the others time.
VARIANTS = {
    name: Variant(name, label)
    for name, label in (
        ("mpi-fp32", "fp32 average, MPI"),
        ("mpi-vote", "majority vote, MPI"),
        ("torch-fp32", "fp32 average, torch"),
        ("torch-vote", "majority vote, torch"),
        ("horovod-fp32", "fp32 average, Horovod"),
        ("horovod-counters", "counter vote, Horovod"),
        ("horovod-planes", "plane vote, Horovod"),
    )
}
