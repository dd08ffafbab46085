"""A way to train, ready for its first step: model, optimizer and what connects the ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mpisign.bench.errors import BenchError
from mpisign.bench.training import rates
from mpisign.bench.training.names import Named
from mpisign.bench.wire.via import Via
from mpisign.compressors import resolve
from mpisign.exchange.buckets import BUCKET_SIZE, cut
from mpisign.exchange.parameter_slot import ParameterSlot
from mpisign.exchange.skip import rule_for

_IN_BUCKETS = ("mpi", "horovod", "ddp")
_ONE_BUCKET = 1 << 20  # MB
_OUR_BUCKET = 4  # MB: our hook starts when DDP's bucket is full (docs/torch.md)
_POWERSGD_RANK = 1
_PLAIN_STEPS = 2  # the fewest that torch's hook asks for, before it compresses


@dataclass
class Training:
    """``module`` is called, ``net`` has the parameters: another only where DDP wraps it.

    ``saved``: what a checkpoint would hold beside the optimizer's own, for a way that keeps
    anything. ``lr``: where its schedule starts. ``bucket``: bytes of its largest bucket, in fp32.
    """

    net: nn.Module
    module: nn.Module
    optimizer: torch.optim.Optimizer
    lr: float
    saved: Callable[[], Any] = dict
    bucket: int = 0

    def step(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        """Forward, backward and update, as a training script writes them."""
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.module(images), labels).backward()
        self.optimizer.step()

    def state(self) -> int:
        """Bytes that the way says it keeps: momentum, residual."""
        return _tensors(self.optimizer.state_dict()) + _tensors(self.saved())


@contextmanager
def connected(way: Named, control: Via, vias: dict[str, Via | str]) -> Iterator[Via | None]:
    """The way's library, Horovod only while the block runs: its thread costs the others time.

    BenchError if it does not run here: ``vias`` has each library, or why it is not there, or ""
    of what is to be started.
    """
    found = vias.get(way.via)
    if found is None or isinstance(found, Via):
        yield found
        return
    if found:
        raise BenchError(found)
    from mpisign.bench.wire.via_horovod import HorovodVia

    via = HorovodVia(control)
    try:
        yield via
    finally:
        via.stop()


def build(way: Named, net: nn.Module, via: Via | None, lr: float, seed: int) -> Training:
    """Wraps ``net`` and an SGD for it; collective."""
    plain = torch.optim.SGD(net.parameters(), lr=lr, momentum=rates.momentum(way))
    training = Training(net, net, plain, lr)
    front = {
        "none": _nothing,
        "mpi": _mpi,
        "mpi-at-step": _mpi,
        "horovod": _horovod,
        "horovod-unmodified": _horovod_unmodified,
        "horovod-fp32": _horovod_peer,
        "horovod-fp16": _horovod_peer,
    }.get(way.front, _ddp)
    front(way, training, via, seed)
    if way.ours:
        training.bucket = _bucket(way, net)
    return training


def _bucket(way: Named, net: nn.Module) -> int:
    """Bytes of the largest bucket's gradients, where they travel in several."""
    if way.front not in _IN_BUCKETS:
        return 0
    compressor = resolve("build", way.compressor)
    members = [ParameterSlot(name, p) for name, p in net.named_parameters()]
    rule = rule_for("build", "auto", compressor)
    buckets = cut("build", members[::-1], compressor, rule, BUCKET_SIZE)
    return 4 * max(sum(b.layout.lengths) for b in buckets)


def _nothing(way: Named, training: Training, via: Via | None, seed: int) -> None:
    pass


def _mpi(way: Named, training: Training, via: Via | None, seed: int) -> None:
    import mpisign

    assert via is not None
    training.optimizer = mpisign.DistributedOptimizer(
        training.optimizer,
        training.net.named_parameters(),
        comm=via.argument(),
        compression=way.compressor,
        seed=seed,
        overlap=way.front == "mpi",
    )


def _horovod(way: Named, training: Training, via: Via | None, seed: int) -> None:
    import mpisign.horovod

    training.optimizer = mpisign.horovod.DistributedOptimizer(
        training.optimizer,
        training.net.named_parameters(),
        compression=way.compressor,
        seed=seed,
    )


def _horovod_unmodified(way: Named, training: Training, via: Via | None, seed: int) -> None:
    import horovod.torch as hvd

    from mpisign.horovod import Compression

    make: Any = getattr(Compression, way.compressor, None)
    if make is None:
        raise BenchError(f"mpisign.horovod.Compression has no {way.compressor}")
    named = list(training.net.named_parameters())
    compression = make(named, seed=seed)
    training.saved = compression.state_dict
    training.optimizer = hvd.DistributedOptimizer(
        training.optimizer, named, compression=compression
    )


def _horovod_peer(way: Named, training: Training, via: Via | None, seed: int) -> None:
    import horovod.torch as hvd

    kind = hvd.Compression.fp16 if way.name == "horovod-fp16" else hvd.Compression.none
    training.optimizer = hvd.DistributedOptimizer(
        training.optimizer, training.net.named_parameters(), compression=kind
    )


def _ddp(way: Named, training: Training, via: Via | None, seed: int) -> None:
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook

    from mpisign.bench.wire.via_torch import TorchVia

    assert isinstance(via, TorchVia)
    more: dict[str, Any] = {}
    if way.name == "ddp-powersgd":
        # One bucket: with several the hook starts allreduces in another order on each rank, and
        # hangs on Gloo. If it does so still, the timeout of a group of its own ends it.
        more = {"process_group": via.group("powersgd"), "bucket_cap_mb": _ONE_BUCKET}
    if way.ours:
        more = {"bucket_cap_mb": _OUR_BUCKET}
    ddp: Any = nn.parallel.DistributedDataParallel(training.net, **more)
    training.module = ddp
    if way.ours:
        _our_hook(way, training, ddp, seed)
    elif way.name == "ddp-fp16":
        ddp.register_comm_hook(None, default_hooks.fp16_compress_hook)
    elif way.name == "ddp-powersgd":
        state = powerSGD_hook.PowerSGDState(
            more["process_group"],
            matrix_approximation_rank=_POWERSGD_RANK,
            start_powerSGD_iter=_PLAIN_STEPS,
        )
        ddp.register_comm_hook(state, powerSGD_hook.powerSGD_hook)


def _our_hook(way: Named, training: Training, ddp: Any, seed: int) -> None:
    import mpisign.ddp as ours

    state = ours.MajorityVoteState(
        None,
        way.compressor,
        seed=seed,
        named_parameters=training.net.named_parameters(),
        optimizer=training.optimizer,
    )
    training.saved = state.state_dict
    ddp.register_comm_hook(state, ours.majority_vote_hook)


def _tensors(saved: Any) -> int:
    """Bytes of all tensors in dicts, lists and tuples."""
    if isinstance(saved, torch.Tensor):
        return saved.nbytes
    if isinstance(saved, dict):
        return sum(_tensors(v) for v in saved.values())
    return sum(_tensors(v) for v in saved) if isinstance(saved, (list, tuple)) else 0
