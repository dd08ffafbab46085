"""A method of training, ready for its first step: model, optimizer and what connects the ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import mpisign
from mpisign.bench.collectives.via import Via
from mpisign.bench.training import names
from mpisign.bench.training.names import TrainingMethod
from mpisign.compressors import resolve
from mpisign.exchange.buckets import BUCKET_SIZE, cut
from mpisign.exchange.parameter_slot import ParameterSlot
from mpisign.exchange.skip import rule_for
from mpisign.experiments.errors import SettingsError

_IN_BUCKETS = ("mpi", "horovod", "ddp")
_ONE_BUCKET = 1 << 20  # MB
#: Steps on averages of optimizers that then compress: few, so that these are not timed.
FREEZE_STEP = 2
_OUR_BUCKET = 4  # MB: our hook starts when DDP's bucket is full (docs/torch.md)


@dataclass
class Training:
    """``module`` is called, ``net`` has the parameters: they differ where DDP wraps ``net``.

    ``saved``: returns what a checkpoint holds beside the optimizer's state. ``lr``: where the
    schedule starts. ``bucket``: bytes of the largest bucket, in fp32.
    """

    net: nn.Module
    module: nn.Module
    optimizer: Any  # what a training loop calls of torch.optim.Optimizer
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

    ``vias`` has each library, or why it is missing, or "" for one to be started here. Raises
    SettingsError if the library does not run here.
    """
    found = vias.get(method.via)
    if found is None or isinstance(found, Via):
        yield found
        return
    if found:
        raise SettingsError(found)
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
    training, named = Training(net, net, sgd, lr), list(net.named_parameters())
    ours: Any = {"compression": method.compressor, "seed": seed}
    if method.front == "optim":
        assert via is not None
        training.optimizer = _optimizer(method.name, named, lr, seed, via.argument())
    elif method.name == names.DEEPSPEED:
        from mpisign.bench.peers import deepspeed

        parameters = list(net.parameters())
        training.optimizer = deepspeed.DeepSpeedAdam(parameters, lr, FREEZE_STEP, via)
    elif method.via == "mpi":
        assert via is not None
        more = {"comm": via.argument(), "overlap": method.front == "mpi"}
        training.optimizer = mpisign.DistributedOptimizer(sgd, named, **more, **ours)
    elif method.front == "horovod":
        from mpisign.horovod import DistributedOptimizer

        training.optimizer = DistributedOptimizer(sgd, named, **ours)
    elif method.via == "horovod":
        import horovod.torch as hvd

        compression = _compression(method, training, named, seed)
        training.optimizer = hvd.DistributedOptimizer(sgd, named, compression=compression)
    elif method.via == "torch":
        _ddp(method, training, via, seed)
    if method.front in _IN_BUCKETS:  # bytes of the largest bucket's gradients
        compressor = resolve("build", method.compressor)
        slots = [ParameterSlot(name, p) for name, p in reversed(named)]
        buckets = cut(
            "build", slots, compressor, rule_for("build", "auto", compressor), BUCKET_SIZE
        )
        training.bucket = 4 * max(sum(b.layout.lengths) for b in buckets)
    return training


def _optimizer(name: str, named: Any, lr: float, seed: int, comm: Any) -> torch.optim.Optimizer:
    """One of ``mpisign.optim``, compressing after ``FREEZE_STEP`` steps."""
    from mpisign import optim

    make: Any = getattr(optim, names.OPTIMIZERS[name])
    made: torch.optim.Optimizer = make(named, lr, freeze_step=FREEZE_STEP, comm=comm, seed=seed)
    return made


def _compression(method: TrainingMethod, training: Training, named: list[Any], seed: int) -> Any:
    """What hvd.DistributedOptimizer takes."""
    import horovod.torch as hvd

    from mpisign.horovod import Compression

    if not method.ours:
        return hvd.Compression.fp16 if method.name == "horovod-fp16" else hvd.Compression.none
    make: Any = getattr(Compression, method.compressor, None)
    if make is None:
        raise SettingsError(f"mpisign.horovod.Compression has no {method.compressor}")
    compression = make(named, seed=seed)
    training.saved = compression.state_dict
    return compression


def _ddp(method: TrainingMethod, training: Training, via: Any, seed: int) -> None:
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook

    import mpisign.ddp as ours
    from mpisign.bench.peers.torch import powersgd_state

    more: dict[str, Any] = {"bucket_cap_mb": _OUR_BUCKET} if method.ours else {}
    if method.name == "ddp-powersgd":
        # One bucket: with several the hook starts allreduces in another order on each rank, and
        # hangs on Gloo. If it still hangs, the timeout of a group of its own ends it.
        more = {"process_group": via.group("powersgd"), "bucket_cap_mb": _ONE_BUCKET}
    ddp: Any = nn.parallel.DistributedDataParallel(training.net, **more)
    training.module = ddp
    if method.ours:
        named, optimizer = training.net.named_parameters(), training.optimizer
        state = ours.MajorityVoteState(
            None, method.compressor, seed=seed, named_parameters=named, optimizer=optimizer
        )
        training.saved = state.state_dict
        ddp.register_comm_hook(state, ours.majority_vote_hook)
    elif method.name == "ddp-fp16":
        ddp.register_comm_hook(None, default_hooks.fp16_compress_hook)
    elif method.name == "ddp-powersgd":
        state = powersgd_state(more["process_group"])
        ddp.register_comm_hook(state, powerSGD_hook.powerSGD_hook)


def _tensors(saved: Any) -> int:
    """Bytes of all tensors in dicts, lists and tuples."""
    if isinstance(saved, torch.Tensor):
        return saved.nbytes
    parts = saved.values() if isinstance(saved, dict) else saved
    return sum(map(_tensors, parts)) if isinstance(saved, dict | list | tuple) else 0
