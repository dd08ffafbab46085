"""MPI through mpi4py, and its allreduce. Importing this module starts MPI."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from mpi4py import MPI

from mpisign import launcher
from mpisign.bench.collectives.method import CollectiveMethod, Gradient, Running, allreduces, summed
from mpisign.bench.collectives.via import Bytes, Via
from mpisign.bench.peers import bare


class MPIVia(Via):
    """COMM_WORLD, by a clone."""

    name = "mpi"

    def __init__(self) -> None:
        launcher.check_world(MPI.COMM_WORLD.Get_size())
        self.comm = MPI.COMM_WORLD.Dup()
        self.rank = self.comm.Get_rank()
        self.size = self.comm.Get_size()
        self.library = MPI.Get_library_version().split(",")[0].splitlines()[0].strip("\0 ")

    def barrier(self) -> None:
        self.comm.Barrier()

    def allgather(self, send: Bytes, received: Bytes) -> None:
        self.comm.Allgather([send, MPI.BYTE], [received, MPI.BYTE])

    def alltoall(self, send: Bytes, received: Bytes) -> None:
        self.comm.Alltoall([send, MPI.BYTE], [received, MPI.BYTE])

    def shift(self, by: int, send: Bytes, received: Bytes) -> None:
        to, source = (self.rank + by) % self.size, (self.rank - by) % self.size
        self.comm.Sendrecv([send, MPI.BYTE], to, 0, [received, MPI.BYTE], source, 0)

    def argument(self) -> Any:
        return MPI.COMM_WORLD

    def methods(self) -> Iterator[CollectiveMethod]:
        """Bare votes; fp32 as MPI offers it; fp16 by an operation in Python, as MPI has none."""
        notes = (
            "fp16 over MPI: cast, summed by NumPy in an MPI.Op (MPI itself has no fp16), and cast "
            "back."
        )
        yield from bare.methods(self.comm)
        yield from allreduces(partial(_fp32, self), partial(_fp16, self), notes)


def _fp32(via: MPIVia, gradient: Gradient) -> Running:
    pairs = list(zip(gradient.cut(gradient.values), gradient.cut(gradient.out), strict=True))

    def call() -> None:
        if len(pairs) == 1:
            via.comm.Allreduce(gradient.values, gradient.out)
        else:
            MPI.Request.Waitall([via.comm.Iallreduce(x, out) for x, out in pairs])

    return summed(gradient, call, exact=True, copied=False)


def _fp16(via: MPIVia, gradient: Gradient) -> Running:
    op = MPI.Op.Create(_sum_fp16, commute=True)
    half, total = (np.empty(gradient.length, dtype=np.float16) for _ in range(2))
    pairs = list(zip(gradient.cut(half), gradient.cut(total), strict=True))

    def call() -> None:
        np.copyto(half, gradient.values, casting="same_kind")
        for x, out in pairs:  # one by one: Python's operation runs in no other call's progress
            via.comm.Allreduce([x, MPI.UINT16_T], [out, MPI.UINT16_T], op)
        np.copyto(gradient.out, total)

    return summed(gradient, call, exact=False, copied=False)


def _sum_fp16(a: Any, b: Any, datatype: MPI.Datatype) -> None:
    x, y = (np.frombuffer(buffer, dtype=np.float16) for buffer in (a, b))
    np.add(x, y, out=y)
