"""A method of training, ready for its first step: model, optimizer and what connects the ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mpisign.bench.collectives.via import Via
from mpisign.bench.errors import BenchError
from mpisign.bench.training import names
from mpisign.bench.training.names import TrainingMethod
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
    """``module`` is called, ``net`` has the parameters: they differ where DDP wraps ``net``.

    ``saved``: returns what a checkpoint holds beside the optimizer's state. ``lr``: where the
    schedule starts. ``bucket``: bytes of the largest bucket, in fp32.
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
        """Bytes of momenta and residuals in a checkpoint."""
        return _tensors(self.optimizer.state_dict()) + _tensors(self.saved())


@contextmanager
def connected(
    method: TrainingMethod, control: Via, vias: dict[str, Via | str]
) -> Iterator[Via | None]:
    """The method's library, Horovod only while the block runs: its thread costs the others time.

    ``vias`` has each library, or why it is missing, or "" for one to be started here. BenchError if
    the library does not run here.
    """
    found = vias.get(method.via)
    if found is None or isinstance(found, Via):
        yield found
        return
    if found:
        raise BenchError(found)
    from mpisign.bench.peers.horovod import HorovodVia

    via = HorovodVia(control)
    try:
        yield via
    finally:
        via.stop()


def build(
    method: TrainingMethod, net: nn.Module, via: Via | None, lr: float, seed: int
) -> Training:
    """Wraps ``net`` and an SGD for it; collective."""
    sgd = torch.optim.SGD(net.parameters(), lr=lr, momentum=names.momentum(method))
    training = Training(net, net, sgd, lr)
    front = {
        "none": None, "mpi": _mpi, "mpi-at-step": _mpi, "horovod": _horovod,
        "horovod-unmodified": _horovod_unmodified, "horovod-fp32": _horovod_peer,
        "horovod-fp16": _horovod_peer,
    }.get(method.front, _ddp)  # fmt: skip
    if front is not None:
        front(method, training, via, seed)
    if method.front in _IN_BUCKETS:
        training.bucket = _bucket(method, net)
    return training


def _bucket(method: TrainingMethod, net: nn.Module) -> int:
    """Bytes of the largest bucket's gradients."""
    compressor = resolve("build", method.compressor)
    members = [ParameterSlot(name, p) for name, p in net.named_parameters()]
    rule = rule_for("build", "auto", compressor)
    buckets = cut("build", members[::-1], compressor, rule, BUCKET_SIZE)
    return 4 * max(sum(b.layout.lengths) for b in buckets)


def _mpi(method: TrainingMethod, training: Training, via: Any, seed: int) -> None:
    import mpisign

    training.optimizer = mpisign.DistributedOptimizer(
        training.optimizer,
        training.net.named_parameters(),
        comm=via.argument(),
        compression=method.compressor,
        seed=seed,
        overlap=method.front == "mpi",
    )


def _horovod(method: TrainingMethod, training: Training, via: Any, seed: int) -> None:
    import mpisign.horovod

    named = training.net.named_parameters()
    training.optimizer = mpisign.horovod.DistributedOptimizer(
        training.optimizer, named, compression=method.compressor, seed=seed
    )


def _horovod_unmodified(method: TrainingMethod, training: Training, via: Any, seed: int) -> None:
    import horovod.torch as hvd

    from mpisign.horovod import Compression

    make: Any = getattr(Compression, method.compressor, None)
    if make is None:
        raise BenchError(f"mpisign.horovod.Compression has no {method.compressor}")
    named = list(training.net.named_parameters())
    compression = make(named, seed=seed)
    training.saved = compression.state_dict
    training.optimizer = hvd.DistributedOptimizer(
        training.optimizer, named, compression=compression
    )


def _horovod_peer(method: TrainingMethod, training: Training, via: Any, seed: int) -> None:
    import horovod.torch as hvd

    kind = hvd.Compression.fp16 if method.name == "horovod-fp16" else hvd.Compression.none
    training.optimizer = hvd.DistributedOptimizer(
        training.optimizer, training.net.named_parameters(), compression=kind
    )


def _ddp(method: TrainingMethod, training: Training, via: Any, seed: int) -> None:
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook

    more: dict[str, Any] = {"bucket_cap_mb": _OUR_BUCKET} if method.ours else {}
    if method.name == "ddp-powersgd":
        # One bucket: with several the hook starts allreduces in another order on each rank, and
        # hangs on Gloo. If it still hangs, the timeout of a group of its own ends it.
        more = {"process_group": via.group("powersgd"), "bucket_cap_mb": _ONE_BUCKET}
    ddp: Any = nn.parallel.DistributedDataParallel(training.net, **more)
    training.module = ddp
    if method.ours:
        _our_hook(method, training, ddp, seed)
    elif method.name == "ddp-fp16":
        ddp.register_comm_hook(None, default_hooks.fp16_compress_hook)
    elif method.name == "ddp-powersgd":
        state = powerSGD_hook.PowerSGDState(
            more["process_group"],
            matrix_approximation_rank=_POWERSGD_RANK,
            start_powerSGD_iter=_PLAIN_STEPS,
        )
        ddp.register_comm_hook(state, powerSGD_hook.powerSGD_hook)


def _our_hook(method: TrainingMethod, training: Training, ddp: Any, seed: int) -> None:
    import mpisign.ddp as ours

    state = ours.MajorityVoteState(
        None,
        method.compressor,
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
    parts = saved.values() if isinstance(saved, dict) else saved
    return sum(map(_tensors, parts)) if isinstance(saved, dict | list | tuple) else 0
