"""Horovod's operations for torch, and its allreduce, plain and with its own fp16 compression."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from typing import Any

import horovod.torch as hvd
import torch

from mpisign import launcher
from mpisign.bench.collectives.method import CollectiveMethod, Gradient, Running, allreduces, summed
from mpisign.bench.collectives.via import Bytes, Via
from mpisign.experiments.errors import SettingsError


class HorovodVia(Via):
    """The global process set."""

    name = "horovod"

    def __init__(self, control: Via | None) -> None:
        torch.set_num_threads(1)
        if control is not None and not hvd.mpi_built():
            raise SettingsError("this Horovod is built without MPI: start with horovodrun --gloo")
        hvd.init()
        self.rank = hvd.rank()
        self.size = hvd.size()
        if control is not None and (self.rank, self.size) != (control.rank, control.size):
            raise SettingsError(
                f"rank {control.rank} of {control.size} is {self.rank} of {self.size} in Horovod"
            )
        launcher.check_world(self.size)
        gloo = os.environ.get("HOROVOD_CONTROLLER") == "gloo"
        self.library = f"Horovod on {'Gloo' if gloo else 'MPI'}"

    def barrier(self) -> None:
        hvd.barrier()

    def allgather(self, send: Bytes, received: Bytes) -> None:
        gathered = hvd.allgather(torch.from_numpy(send), name="mpisign.bench.allgather")
        received.reshape(-1)[...] = gathered.numpy()

    def alltoall(self, send: Bytes, received: Bytes) -> None:
        rows = hvd.alltoall(torch.from_numpy(send), name="mpisign.bench.alltoall")
        received[...] = rows.numpy()

    def shift(self, by: int, send: Bytes, received: Bytes) -> None:
        splits = torch.zeros(self.size, dtype=torch.int32)
        splits[(self.rank + by) % self.size] = len(send)
        parts = hvd.alltoall(torch.from_numpy(send), splits=splits, name="mpisign.bench.shift")
        received[...] = (parts[0] if isinstance(parts, tuple) else parts).numpy()

    def argument(self) -> Any:
        return "horovod"

    def stop(self) -> None:
        hvd.shutdown()

    def methods(self) -> Iterator[CollectiveMethod]:
        """fp32 and fp16."""
        return allreduces(partial(_start, "fp32"), partial(_start, "fp16"))


def _start(name: str, gradient: Gradient) -> Running:
    """As hvd.DistributedOptimizer does it: compress, allreduce in place, decompress."""
    compression: Any = hvd.Compression.fp16 if name == "fp16" else hvd.Compression.none
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

    return summed(gradient, call, exact=name == "fp32", copied=True)
