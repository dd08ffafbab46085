"""Allreduce of torch.distributed, and its PowerSGD hook."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook

from mpisign.bench.wire import traffic
from mpisign.bench.wire.gradient import Gradient
from mpisign.bench.wire.traffic import Traffic
from mpisign.bench.wire.via_torch import TorchVia
from mpisign.bench.wire.way import Running, Way, WrongResultError, check_sum

_RANK = 1
_PLAIN_STEPS = 2  # the fewest that the hook asks for, before it compresses


def ways(via: TorchVia) -> Iterator[Way]:
    """fp32, fp16, PowerSGD."""
    yield Way("fp32 allreduce", "fp32", None, traffic.of_fp32, lambda g: _fp32(g))
    yield Way(
        "fp16 allreduce",
        "fp16",
        None,
        traffic.of_fp16,
        lambda g: _fp16(g),
        notes="fp16 over Gloo: as DDP's fp16 hook does, cast, summed in fp16, cast back.",
    )
    yield Way(
        "PowerSGD rank 1",
        "powersgd",
        None,
        _powersgd_traffic,
        lambda g: _powersgd(via, g),
        notes="PowerSGD: torch's DDP hook on one bucket, each tensor a matrix as square as can be, "
        "error feedback and warm start as by default.",
    )


def _all_reduce(tensors: list[torch.Tensor]) -> None:
    works = [dist.all_reduce(tensor, async_op=True) for tensor in tensors]
    for work in works:
        work.wait()


def _fp32(gradient: Gradient) -> Running:
    tensors = gradient.cut(gradient.out)
    out = [torch.from_numpy(t) for t in tensors]
    return Running(
        lambda: _all_reduce(out),
        lambda: check_sum(gradient, gradient.out, exact=True),
        prepare=lambda: np.copyto(gradient.out, gradient.values),
    )


def _fp16(gradient: Gradient) -> Running:
    x, out = torch.from_numpy(gradient.values), torch.from_numpy(gradient.out)
    half = torch.empty(gradient.length, dtype=torch.float16)
    tensors = list(half.split(list(gradient.lengths)))

    def call() -> None:
        half.copy_(x)
        _all_reduce(tensors)
        out.copy_(half)

    return Running(call, lambda: check_sum(gradient, gradient.out, exact=False))


class _Bucket:
    """What the hook asks of DDP's GradBucket, which Python cannot make."""

    def __init__(self, flat: torch.Tensor, gradients: list[torch.Tensor]) -> None:
        self._flat, self._gradients = flat, gradients

    def index(self) -> int:
        return 0

    def is_last(self) -> bool:
        return True

    def buffer(self) -> torch.Tensor:
        return self._flat

    def gradients(self) -> list[torch.Tensor]:
        return self._gradients


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


def _powersgd(via: TorchVia, gradient: Gradient) -> Running:
    out = torch.from_numpy(gradient.out)
    shapes = [shape for n in gradient.lengths for shape in _matrices(n)]
    parts = out.split([math.prod(shape) for shape in shapes])
    bucket: Any = _Bucket(out, [p.view(s) for p, s in zip(parts, shapes, strict=True)])
    # A group of its own: on Gloo the hook can hang, and the group's timeout ends it.
    state = powerSGD_hook.PowerSGDState(
        via.group("powersgd"), matrix_approximation_rank=_RANK, start_powerSGD_iter=_PLAIN_STEPS
    )

    def call() -> None:
        powerSGD_hook.powerSGD_hook(state, bucket).wait()

    def prepare() -> None:
        np.copyto(gradient.out, gradient.values)
        while state.iter < _PLAIN_STEPS:
            call()
            np.copyto(gradient.out, gradient.values)

    def check() -> None:
        if not np.isfinite(gradient.out).all():
            raise WrongResultError("wrong: an infinity or a NaN")

    return Running(call, check, prepare, result=lambda: gradient.out)
