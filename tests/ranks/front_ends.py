"""One small interface over every front end.

Imports Horovod and MPI only where a job uses them, so that tests/test_promises.py may import this.
"""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass
from typing import Any

import torch
from expected import Net
from job import World

#: In this order in tables. "ddp_bare": the hook's state without ``optimizer=``.
TORCH = ("plain", "overlap", "ddp", "ddp_bare", "fsdp1", "fsdp2")
HVD = ("hvd_named", "hvd_counters")  # Horovod's own optimizer
HOROVOD = ("horovod", *HVD)
FRONTS = (*TORCH, *HOROVOD)
HOOKS = ("ddp", "ddp_bare")
SHARDED = ("fsdp1", "fsdp2")
REPLICATED = tuple(f for f in FRONTS if f not in SHARDED)
#: What each launcher starts: over Gloo and over MPI.
JOBS = {"torchrun": TORCH, "mpirun": ("plain", "overlap", *HOROVOD)}
#: Needs no random bits, so that a line of torch knows the result.
EXACT = {"zeros": "abstain", "ties": "zero"}


def promise(*fronts):
    """Marks what a step promises on these front ends: a function of the world and a front end."""

    def mark(function):
        function.fronts = tuple(f for f in FRONTS if f in fronts)
        return function

    return mark


@dataclass
class Wrapped:
    """A model on one rank, wrapped. ``votes``: what holds the compressor's state and the steps."""

    front: str
    net: torch.nn.Module
    model: Any
    optimizer: torch.optim.Optimizer
    votes: Any

    @property
    def steps(self) -> int:
        """Steps that the compressor has counted; hvd_counters counts gradients instead."""
        state = self.votes.state_dict()
        if self.front in HOOKS:
            return state["steps"]
        return state["mpisign"]["step" if self.front in HVD else "steps"]

    def state(self) -> dict[str, dict[str, torch.Tensor]]:
        """The compressor's state on this rank by parameter."""
        state = self.votes.state_dict()
        if self.front in HOOKS:
            return state["state"]
        if self.front in HVD:
            return {k: v for k, v in state.items() if k != "mpisign"}
        return state["mpisign"]["state"]

    def train(self, *losses):
        """One step on a loss of each function, as most loops take it."""
        self.optimizer.zero_grad()
        for function in losses:
            function(self.model).backward()
        self.optimizer.step()

    def discard(self):
        """Throws computed gradients away: under Horovod by its own recipe."""
        if self.front in HOROVOD:
            self.optimizer.synchronize()
        self.optimizer.zero_grad()

    def save(self) -> bytes:
        """This rank's checkpoint."""
        file = io.BytesIO()
        saved = {"net": self.net.state_dict(), "optimizer": self.optimizer.state_dict()}
        if self.votes is not self.optimizer:
            saved["votes"] = self.votes.state_dict()
        torch.save(saved, file)
        return file.getvalue()

    def load(self, checkpoint: bytes):
        saved = torch.load(io.BytesIO(checkpoint), weights_only=True)
        self.net.load_state_dict(saved["net"])
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.votes is not self.optimizer:
            self.votes.load_state_dict(saved["votes"])

    def parameters(self) -> dict[str, torch.Tensor]:
        """Copies of the whole parameters by name."""
        if self.front == "fsdp1":
            from torch.distributed.fsdp import FullyShardedDataParallel as FSDP

            with FSDP.summon_full_params(self.model, writeback=False):
                return {
                    n.replace("_fsdp_wrapped_module.", ""): p.detach().clone()
                    for n, p in self.model.named_parameters()
                }
        if self.front == "fsdp2":
            return {n: p.full_tensor().detach() for n, p in self.net.named_parameters()}
        return {n: p.detach().clone() for n, p in self.net.named_parameters()}


def settings_of(compression: Any) -> tuple[str, dict[str, Any]]:
    """(name, settings) of "signum" or ("signum", {...})."""
    return (compression, {}) if isinstance(compression, str) else compression


def make(
    world: World,
    front: str,
    net: torch.nn.Module | None = None,
    compression: Any = ("signum", EXACT),
    *,
    lr: float = 0.125,
    inner: Any = None,
    parameters: Any = None,
    prefix: str = "",
    ddp: dict[str, Any] | None = None,
    **options: Any,
) -> Wrapped:
    """``net`` wrapped by a front end.

    ``compression``: a name, or a name with settings. ``inner``: makes the optimizer, default SGD.
    ``parameters``: the optimizer's, default all. ``prefix``: of names, for a second model.
    ``options``: the front end's.
    """
    import mpisign

    net = Net() if net is None else net
    inner = functools.partial(torch.optim.SGD, lr=lr) if inner is None else inner
    name, settings = settings_of(compression)
    if front in SHARDED:
        return _sharded(world, front, net, name, settings, inner, options)
    optimizer = inner(list(net.parameters()) if parameters is None else parameters)
    named = [(prefix + n, p) for n, p in net.named_parameters()]
    compressor = getattr(mpisign.Compression, name)(**settings)
    if front in ("plain", "overlap"):
        mpisign.DistributedOptimizer(
            optimizer,
            named,
            comm=world.group,
            compression=compressor,
            overlap=front == "overlap",
            **options,
        )
        return Wrapped(front, net, net, optimizer, optimizer)
    if front in HOOKS:
        return _hooked(world, front, net, optimizer, named, compressor, ddp, options)
    import horovod.torch as hvd

    import mpisign.horovod

    if front == "horovod":
        made = mpisign.horovod.DistributedOptimizer(
            optimizer, named_parameters=named, compression=compressor, **options
        )
        return Wrapped(front, net, net, made, made)
    kept = {k: options.pop(k) for k in ("seed", "skip", "warmup_steps") if k in options}
    given = [named] if front == "hvd_named" else []
    votes = getattr(mpisign.horovod.Compression, name)(*given, **settings, **kept)
    made = hvd.DistributedOptimizer(optimizer, named_parameters=named, compression=votes, **options)
    return Wrapped(front, net, net, made, votes)


def _hooked(world, front, net, optimizer, named, compressor, ddp, options):
    import mpisign.ddp

    state = mpisign.ddp.MajorityVoteState(
        world.group,
        compressor,
        named_parameters=named,
        **{} if front == "ddp_bare" else {"optimizer": optimizer},
        **options,
    )
    model = torch.nn.parallel.DistributedDataParallel(net, bucket_cap_mb=0.0005, **(ddp or {}))
    model.register_comm_hook(state, mpisign.ddp.majority_vote_hook)
    return Wrapped(front, net, model, optimizer, state)


def _sharded(world, front, net, name, settings, inner, options):
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

    import mpisign.fsdp

    # The promises ask for signum; what has no state is what these hooks take.
    compressor = getattr(mpisign.Compression, "sign" if name == "signum" else name)(**settings)
    state = mpisign.fsdp.MajorityVoteState(world.group, compressor, **options)
    if front == "fsdp1":
        net = FullyShardedDataParallel(
            net,
            device_id=torch.device("cpu"),
            auto_wrap_policy=lambda module, recurse, nonwrapped_numel: (
                recurse or isinstance(module, torch.nn.Linear)
            ),
            use_orig_params=True,
        )
        net.register_comm_hook(state, mpisign.fsdp.majority_vote_hook)
    else:
        for layer in net.children():
            fully_shard(layer)
        fully_shard(net)
        mpisign.fsdp.register_comm_hook(net, state)
    return Wrapped(front, net, net, inner(list(net.parameters())), state)


def beta_of(front: str) -> float:
    """Of the momentum in a front end's compressor here: the sharded ones take Sign."""
    return 0.0 if front in SHARDED else 0.9
