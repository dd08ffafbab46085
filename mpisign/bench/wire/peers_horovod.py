"""Allreduce of Horovod, plain and with its own fp16 compression."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import horovod.torch as hvd
import numpy as np
import torch

from mpisign.bench.wire import traffic
from mpisign.bench.wire.gradient import Gradient
from mpisign.bench.wire.way import Running, Way, check_sum


def ways() -> Iterator[Way]:
    """fp32 and fp16."""
    yield Way(
        "fp32 allreduce",
        "fp32",
        None,
        traffic.of_fp32,
        lambda g: _start(g, hvd.Compression.none, "fp32"),
    )
    yield Way(
        "fp16 allreduce",
        "fp16",
        None,
        traffic.of_fp16,
        lambda g: _start(g, hvd.Compression.fp16, "fp16"),
    )


def _start(gradient: Gradient, compression: Any, name: str) -> Running:
    """As hvd.DistributedOptimizer does it: compress, allreduce in place, decompress."""
    tensors = [torch.from_numpy(t) for t in gradient.cut(gradient.out)]

    def call() -> None:
        started = []
        for i, tensor in enumerate(tensors):
            sent, context = compression.compress(tensor)
            label = f"mpisign.bench.{name}.{gradient.length}.{i}"
            started.append((hvd.allreduce_async_(sent, op=hvd.Sum, name=label), context))
        for tensor, (handle, context) in zip(tensors, started, strict=True):
            result = compression.decompress(hvd.synchronize(handle), context)
            if result.data_ptr() != tensor.data_ptr():
                tensor.copy_(result)

    return Running(
        call,
        lambda: check_sum(gradient, gradient.out, exact=name == "fp32"),
        prepare=lambda: np.copyto(gradient.out, gradient.values),
    )
