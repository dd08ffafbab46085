"""What the ranks of an MPI job find out about CUDA: printed by rank 0, the same on all."""

from __future__ import annotations

import os
import sys

from mpi4py import MPI

from mpisign.transports import cuda_mpi
from mpisign.transports.mpi import MPITransport

rank = MPI.COMM_WORLD.rank
control = MPITransport(MPI.COMM_WORLD.Dup())
for setting in sys.argv[1:] or ["auto"]:  # of each rank in turn, by commas
    values = setting.split(",")
    os.environ[cuda_mpi.VARIABLE] = values[rank % len(values)]
    try:
        answer = " ".join(map(str, cuda_mpi.together(control)))
    except ValueError as error:
        answer = f"ValueError: {error}"
    assert len(set(MPI.COMM_WORLD.allgather(answer))) == 1
    if rank == 0:
        print("together:", answer)
if rank == 0:
    print("library:", *cuda_mpi.library_says())
    print(cuda_mpi.libraries())
