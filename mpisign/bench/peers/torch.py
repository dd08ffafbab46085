"""torch.distributed on Gloo, its allreduce, and its PowerSGD hook."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook

from mpisign import launcher
from mpisign.bench.collectives import traffic
from mpisign.bench.collectives.method import (
    CollectiveMethod,
    Gradient,
    Running,
    WrongResultError,
    allreduces,
    summed,
)
from mpisign.bench.collectives.traffic import Traffic
from mpisign.bench.collectives.via import Bytes, Via

_RANK = 1
_PLAIN_STEPS = 2  # the fewest that the hook asks for, before it compresses
# Its name before and from torch 2.13 on.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class TorchVia(Via):
    """The default process group, on Gloo."""

    name = "torch"

    def __init__(self, control: Via | None, seconds: float) -> None:
        torch.set_num_threads(1)
        interface = os.environ.get("NETLAB_INTERFACE")
        if interface:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        self.seconds = seconds
        timeout = timedelta(seconds=seconds)
        given: dict[str, Any] = {}
        if control is not None:
            store = _store(control)
            given = {"store": store, "rank": control.rank, "world_size": control.size}
        dist.init_process_group("gloo", timeout=timeout, **given)
        self._groups: dict[str, Any] = {}
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        launcher.check_world(self.size)
        self.library = f"Gloo of torch {torch.__version__}"

    def barrier(self) -> None:
        dist.barrier()

    def allgather(self, send: Bytes, received: Bytes) -> None:
        _all_gather(torch.from_numpy(received).view(-1), torch.from_numpy(send))

    def alltoall(self, send: Bytes, received: Bytes) -> None:
        dist.all_to_all_single(torch.from_numpy(received), torch.from_numpy(send))

    def shift(self, by: int, send: Bytes, received: Bytes) -> None:
        to, source = (self.rank + by) % self.size, (self.rank - by) % self.size
        receive = dist.irecv(torch.from_numpy(received), source)
        dist.send(torch.from_numpy(send), to)
        assert receive is not None
        receive.wait()

    def group(self, name: str) -> Any:
        """A group of all ranks for one peer alone: an error in it leaves the others usable."""
        if name not in self._groups:
            self._groups[name] = dist.new_group(timeout=timedelta(seconds=self.seconds))
        return self._groups[name]

    def argument(self) -> Any:
        return dist.group.WORLD

    def methods(self) -> Iterator[CollectiveMethod]:
        """fp32, fp16, PowerSGD."""
        notes = "fp16 over Gloo: as DDP's fp16 hook does, cast, summed in fp16, cast back."
        yield from allreduces(_fp32, _fp16, notes)
        yield CollectiveMethod(
            "PowerSGD rank 1", "powersgd", _powersgd_traffic, partial(_powersgd, self),
            notes="PowerSGD: torch's DDP hook on one bucket, each tensor a matrix as square as can "
            "be, error feedback and warm start as by default.",
        )  # fmt: skip

    def stop(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()


def _store(control: Via) -> Any:
    """A store at a free port of rank 0, whose address ``control`` carries to the others."""
    address, store = "", None
    if control.rank == 0:
        host = _address()
        store = dist.TCPStore(host, 0, control.size, True, wait_for_workers=False)
        address = f"{host} {store.port}"
    host, port = control.gather_text(address)[0].split()
    if store is None:
        store = dist.TCPStore(host, int(port), control.size, False)
    return store


def _address() -> str:
    """What the other ranks reach this host by."""
    one_node = launcher.local_size() == launcher.launched_size()
    if one_node and "NETLAB" not in os.environ:
        return "127.0.0.1"
    return socket.gethostbyname(socket.gethostname())


def _all_reduce(tensors: list[torch.Tensor]) -> None:
    works = [dist.all_reduce(tensor, async_op=True) for tensor in tensors]
    for work in works:
        work.wait()


def _fp32(gradient: Gradient) -> Running:
    out = [torch.from_numpy(t) for t in gradient.cut(gradient.out)]
    return summed(gradient, lambda: _all_reduce(out), exact=True, copied=True)


def _fp16(gradient: Gradient) -> Running:
    x, out = torch.from_numpy(gradient.values), torch.from_numpy(gradient.out)
    half = torch.empty(gradient.length, dtype=torch.float16)
    tensors = list(half.split(list(gradient.lengths)))

    def call() -> None:
        half.copy_(x)
        _all_reduce(tensors)
        out.copy_(half)

    return summed(gradient, call, exact=False, copied=False)


def _matrices(length: int) -> list[tuple[int, ...]]:
    """The shapes that a tensor of ``length`` is seen as: a matrix, and what is left of it."""
    rows = math.isqrt(length)
    columns = length // rows
    rest = length - rows * columns
    return [(rows, columns), *([(rest,)] if rest else [])]


def _powersgd_traffic(length: int, size: int, nodes: int, each: int) -> Traffic:
    """Allreduces of one factor each, and of what is left; of one tensor."""
    values = sum(_RANK * sum(s) if len(s) > 1 else s[0] for s in _matrices(length))
    return traffic.allreduce(values, 4, size, nodes)


def powersgd_state(group: Any) -> Any:
    """The state of torch's PowerSGD hook."""
    return powerSGD_hook.PowerSGDState(
        group, matrix_approximation_rank=_RANK, start_powerSGD_iter=_PLAIN_STEPS
    )


def _powersgd(via: TorchVia, gradient: Gradient) -> Running:
    out = torch.from_numpy(gradient.out)
    shapes = [shape for n in gradient.lengths for shape in _matrices(n)]
    parts = out.split([math.prod(shape) for shape in shapes])
    views = [p.view(s) for p, s in zip(parts, shapes, strict=True)]
    # What the hook asks of DDP's GradBucket, which Python cannot make.
    bucket: Any = SimpleNamespace(
        index=lambda: 0, is_last=lambda: True, buffer=lambda: out, gradients=lambda: views
    )
    # A group of its own: on Gloo the hook can hang, and the group's timeout ends it.
    state = powersgd_state(via.group("powersgd"))

    def call() -> None:
        powerSGD_hook.powerSGD_hook(state, bucket).wait()

    def prepare() -> None:
        gradient.refill()
        while state.iter < _PLAIN_STEPS:
            call()
            gradient.refill()

    def check() -> None:
        if not np.isfinite(gradient.out).all():
            raise WrongResultError("wrong: an infinity or a NaN")

    return Running(call, check, prepare, result=lambda: gradient.out)
