"""The training of ``steps.py`` by every front end that has a torch optimizer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np

from faults.steps import MOMENTUM, RATE, Front, Functions, gradients


class Optimizer(Front):
    """torch parameters, an optimizer, and gradients by backward()."""

    net: Any

    def model(self) -> Any:
        """Parameters whose gradients are what forward() is given."""
        import torch

        class Net(torch.nn.Module):
            def __init__(self, shapes: list[tuple[int, ...]], offset: float) -> None:
                super().__init__()
                made = [torch.nn.Parameter(torch.full(s, offset)) for s in shapes]
                self.layers = torch.nn.ParameterList(made)

            def forward(self, gradients: list[Any]) -> Any:
                pairs = zip(self.layers, gradients, strict=True)
                return sum((p * g).sum() for p, g in pairs if g is not None)

        torch.set_num_threads(1)
        self.net = Net(self.shapes, self.offset)
        self.optimizer: Any = torch.optim.SGD(self.net.parameters(), lr=RATE)
        return self.net

    def compression(self) -> Any:
        """The Compressor."""
        from mpisign.compressors import Sign, Signum

        policies = {"zeros": "abstain", "ties": self.options["ties"]}
        if self.job.compression == "sign":
            return Sign(**policies)
        return Signum(momentum=MOMENTUM, **policies)

    def backward(self, step: int) -> None:
        """All gradients of a step."""
        import torch

        self.now = step
        self.optimizer.zero_grad()
        given: list[Any] = [
            torch.from_numpy(g) for g in gradients(self.job, self.rank, step, self.shapes)
        ]
        if self.job.kind == "no-gradient" and (self.rank, step) == (self.job.odd, self.job.at):
            given[1] = None
        self.net(given).backward()
        if self.sparse:
            p = self.optimizer.param_groups[0]["params"][0]
            p.grad = p.grad.to_sparse()

    def step(self, step: int, between: Callable[[], None] | None = None) -> None:
        self.backward(step)
        if between is not None:
            between()
        self.optimizer.step()

    def parts(self) -> list[Any]:
        return [p.detach().numpy() for p in self.optimizer.param_groups[0]["params"]]

    def state_dict(self) -> dict[str, Any]:
        """mpisign's part of a checkpoint."""
        return copy.deepcopy(self.optimizer.state_dict()["mpisign"])

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """And back."""
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "mpisign": saved})


class Plain(Optimizer):
    """mpisign.DistributedOptimizer."""

    overlap = False

    def begin(self) -> None:
        import mpisign

        net = self.model()
        mpisign.DistributedOptimizer(
            self.optimizer,
            net.named_parameters(),
            comm=self.job.wire.partition("-")[0],
            compression=self.compression(),
            algorithm=self.options["algorithm"],
            seed=self.options["seed"],
            skip=None,
            overlap=self.overlap,
            bucket_size=self.options.get("bucket_size", 1000),
        )


class Overlap(Plain):
    """The same, exchanging gradients while backward() computes others."""

    overlap = True


class DDP(Optimizer):
    """torch's DDP with mpisign.ddp's hook."""

    def begin(self) -> None:
        from torch.nn.parallel import DistributedDataParallel

        import mpisign.ddp

        self.net = DistributedDataParallel(net := self.model())
        self.state = mpisign.ddp.MajorityVoteState(
            compression=self.compression(),
            seed=self.options["seed"],
            named_parameters=net.named_parameters(),
            skip=None,
        )
        self.net.register_comm_hook(self.state, mpisign.ddp.majority_vote_hook)

    def state_dict(self) -> dict[str, Any]:
        return copy.deepcopy(self.state.state_dict())

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.state.load_state_dict(saved)


class FSDP(Optimizer):
    """torch's FSDP, version 2, with mpisign.fsdp's hook."""

    def begin(self) -> None:
        import torch
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        import mpisign.fsdp

        net = self.model()
        fully_shard(net, mesh=init_device_mesh("cpu", (self.job.ranks,)))
        state = mpisign.fsdp.MajorityVoteState(
            compression=self.compression(), seed=self.options["seed"]
        )
        mpisign.fsdp.register_comm_hook(net, state)
        self.optimizer = torch.optim.SGD(net.parameters(), lr=RATE)

    def parts(self) -> list[Any]:
        return [p.to_local().detach().numpy() for p in self.optimizer.param_groups[0]["params"]]

    def wanted(self) -> list[Any]:
        return [np.split(x, self.job.ranks)[self.rank] for x in self.reference.x]

    def digest(self) -> str:
        return ""  # each rank holds its own shard


class OurHorovod(Optimizer):
    """mpisign.horovod.DistributedOptimizer."""

    def begin(self) -> None:
        from mpisign.horovod import DistributedOptimizer

        net = self.model()
        self.optimizer = DistributedOptimizer(
            self.optimizer,
            net.named_parameters(),
            self.compression(),
            seed=self.options["seed"],
            skip=None,
            bucket_size=self.options.get("bucket_size", 1000),
        )

    def step(self, step: int, between: Callable[[], None] | None = None) -> None:
        if between is None:
            return super().step(step)
        self.backward(step)
        self.optimizer.synchronize()
        between()
        with self.optimizer.skip_synchronize():
            self.optimizer.step()


class Horovod(OurHorovod):
    """The unmodified hvd.DistributedOptimizer; votes are counted by Horovod's allreduce."""

    by_name = False

    def begin(self) -> None:
        import horovod.torch as hvd

        from mpisign.horovod import Compression

        named = list(self.model().named_parameters())
        make = getattr(Compression, self.job.compression)
        settings = {"zeros": "abstain", "ties": self.options["ties"], "seed": self.options["seed"]}
        if self.job.compression == "signum":
            settings["momentum"] = MOMENTUM
        compression = make(named, skip=None, **settings) if self.by_name else make(**settings)
        self.optimizer = hvd.DistributedOptimizer(self.optimizer, named, compression)


class HorovodByName(Horovod):
    """The same with named parameters: votes travel as planes."""

    by_name = True


FRONTS: dict[str, type[Front]] = {
    "functions": Functions,
    "plain": Plain,
    "overlap": Overlap,
    "ddp": DDP,
    "fsdp": FSDP,
    "mpisign.horovod": OurHorovod,
    "hvd-by-name": HorovodByName,
    "hvd": Horovod,
}
