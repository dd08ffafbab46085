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

_POWERSGD_RANK = 1
_PLAIN_STEPS = 2  # the fewest that torch's hook asks for, before it compresses


@dataclass
class Training:
    """``module`` is called, ``net`` has the parameters: another only where DDP wraps it.

    ``saved``: what a checkpoint would hold beside the optimizer's own, for a way that keeps
    anything. ``lr``: where its schedule starts.
    """

    net: nn.Module
    module: nn.Module
    optimizer: torch.optim.Optimizer
    lr: float
    saved: Callable[[], Any] = dict
    buckets: Callable[[], Any] = list

    def step(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        """Forward, backward and update, as a training script writes them."""
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.module(images), labels).backward()
        self.optimizer.step()

    def state(self) -> int:
        """Bytes that the way says it keeps: momentum, residual."""
        return _tensors(self.optimizer.state_dict()) + _tensors(self.saved())

    def bucket(self) -> int:
        """Bytes of the largest bucket's plane; 0 if there is one bucket, or none of ours."""
        lengths = [b.layout.nbytes for b in self.buckets()]
        return max(lengths) if len(lengths) > 1 else 0


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
    return training


def _nothing(way: Named, training: Training, via: Via | None, seed: int) -> None:
    pass


def _mpi(way: Named, training: Training, via: Via | None, seed: int) -> None:
    import mpisign
    from mpisign.gradients.hooks import KEY

    assert via is not None
    training.optimizer = mpisign.DistributedOptimizer(
        training.optimizer,
        training.net.named_parameters(),
        comm=via.argument(),
        compression=way.compressor,
        seed=seed,
        overlap=way.front == "mpi",
    )
    training.buckets = lambda: getattr(training.optimizer, KEY).exchange.buckets


def _horovod(way: Named, training: Training, via: Via | None, seed: int) -> None:
    import mpisign.horovod

    # Not built in every version: said in the table's row, not by an AttributeError.
    wrap: Any = getattr(mpisign.horovod, "DistributedOptimizer", None)
    if wrap is None:
        raise BenchError("this mpisign has no mpisign.horovod.DistributedOptimizer")
    training.optimizer = wrap(
        training.optimizer,
        training.net.named_parameters(),
        compression=_made(way.compressor),
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
    group = None
    if way.name == "ddp-powersgd":
        group = via.group("powersgd")  # on Gloo the hook can hang: the group's timeout ends it
    ddp: Any = nn.parallel.DistributedDataParallel(training.net, process_group=group)
    training.module = ddp
    if way.ours:
        _our_hook(way, training, ddp, seed)
    elif way.name == "ddp-fp16":
        ddp.register_comm_hook(None, default_hooks.fp16_compress_hook)
    elif way.name == "ddp-powersgd":
        state = powerSGD_hook.PowerSGDState(
            group,
            matrix_approximation_rank=_POWERSGD_RANK,
            start_powerSGD_iter=_PLAIN_STEPS,
        )
        ddp.register_comm_hook(state, powerSGD_hook.powerSGD_hook)


def _our_hook(way: Named, training: Training, ddp: Any, seed: int) -> None:
    try:
        import mpisign.ddp as ours
    except ImportError as error:
        raise BenchError(f"this mpisign has no mpisign.ddp: {error}") from error
    state = ours.MajorityVoteState(compression=_made(way.compressor), seed=seed)
    training.saved = state.__getstate__
    ddp.register_comm_hook(state, ours.majority_vote_hook)


def _made(name: str) -> Any:
    """A compressor with its defaults."""
    from mpisign.compressors import resolve

    return resolve("mpisign bench training", name)


def _tensors(saved: Any) -> int:
    """Bytes of all tensors in dicts, lists and tuples."""
    if isinstance(saved, torch.Tensor):
        return saved.nbytes
    if isinstance(saved, dict):
        return sum(_tensors(v) for v in saved.values())
    return sum(_tensors(v) for v in saved) if isinstance(saved, (list, tuple)) else 0
