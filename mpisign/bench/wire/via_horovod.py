"""Horovod's operations for torch."""

from __future__ import annotations

import os
from typing import Any

import horovod.torch as hvd
import torch

from mpisign import launcher
from mpisign.bench.errors import BenchError
from mpisign.bench.wire.via import Bytes, Via


class HorovodVia(Via):
    """The global process set."""

    name = "horovod"

    def __init__(self, control: Via | None) -> None:
        torch.set_num_threads(1)
        if control is not None and not hvd.mpi_built():
            raise BenchError("this Horovod is built without MPI: start with horovodrun --gloo")
        hvd.init()
        self.rank = hvd.rank()
        self.size = hvd.size()
        if control is not None and (self.rank, self.size) != (control.rank, control.size):
            raise BenchError(
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
        came = hvd.alltoall(torch.from_numpy(send), splits=splits, name="mpisign.bench.shift")
        received[...] = (came[0] if isinstance(came, tuple) else came).numpy()

    def argument(self) -> Any:
        return "horovod"

    def stop(self) -> None:
        hvd.shutdown()
