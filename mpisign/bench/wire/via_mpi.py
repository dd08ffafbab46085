"""MPI through mpi4py. Importing this module starts MPI."""

from __future__ import annotations

from typing import Any

from mpi4py import MPI

from mpisign import launcher
from mpisign.bench.wire.via import Bytes, Via


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
